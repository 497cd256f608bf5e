package main

import (
	"bytes"
	"crypto/ed25519"
	"crypto/hmac"
	"crypto/hpke"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"hash"
	"slices"
)

// A request and its response: docs/protocol.md sections 5 to 7.

const (
	secretSize   = 32
	sealedSize   = 1120 + secretSize + tagSize
	maxEnvelope  = 6493
	maxReceipt   = 8192
	maxRequestID = 64
	maxMethod    = 16
)

func requestInfo(ticket claims, requestID string, sequence uint64, method string) []byte {
	return lp([]byte("bulkhead/v1 request"), ticket.keysetDigest, []byte(ticket.tenant), []byte(ticket.session),
		[]byte(requestID), u64(sequence), ticket.modelDigest, []byte(method), ticket.evidenceDigest, ticket.decisionLeafHash)
}

func transcriptHash(info, sealed []byte) []byte {
	hashed := sha256.Sum256(lp(info, sealed))
	return hashed[:]
}

// signer is what a client signs with: its session key, and the certificate by its tenant's root, if that has one.
type signer struct {
	key         ed25519.PrivateKey
	certificate []byte
}

// request is one sealed request and what has been read of its response.
type request struct {
	ticket                     claims
	keys                       keyset
	id, method                 string
	envelope                   []byte
	chunks                     [][]byte
	secret, transcript         []byte
	commitment                 hash.Hash
	requestCommitment          []byte
	response                   *stream
	end                        map[string]any
	tokens, prompt, completion int64
	text                       string
	receipt                    []byte
}

func newRequest(ticket string, verified claims, keys keyset, by signer, id, method string, payload []byte,
	sequence uint64) *request {
	public, err := hpke.MLKEM768X25519().NewPublicKey(keys.requestKEM)
	demand(err == nil, "EVIDENCE_INVALID", "the KEM key is not valid")
	secret := make([]byte, secretSize)
	rand.Read(secret)
	info := requestInfo(verified, id, sequence, method)
	sealed, err := hpke.Seal(public, hpke.HKDFSHA256(), hpke.AES256GCM(), info, secret)
	demand(err == nil, "SEAL_BROKEN", "cannot seal to that key")
	transcript := transcriptHash(info, sealed)
	made := &request{ticket: verified, keys: keys, id: id, method: method}
	made.envelope = slices.Concat([]byte{1}, lp([]byte(ticket), by.certificate), keys.id[:], u64(sequence),
		lp([]byte(id), []byte(method), sealed), ed25519.Sign(by.key, transcript))
	sealer := newStream(requestKey(secret, transcript), toServer)
	for rest, whole := payload, false; !whole; {
		piece := rest[:min(len(rest), maxRecord)]
		rest = rest[len(piece):]
		whole = len(rest) == 0
		made.chunks = append(made.chunks, sealer.seal(pad(piece, verified.padding, toServer), whole))
	}
	made.expect(secret, transcript, payload)
	return made
}

// expect prepares for the response.
func (r *request) expect(secret, transcript, payload []byte) {
	r.secret, r.transcript = secret, transcript
	key := commitKey(secret, transcript)
	r.requestCommitment = mac(key, payload)
	r.commitment = hmac.New(sha256.New, key)
}

func mac(key, data []byte) []byte {
	made := hmac.New(sha256.New, key)
	made.Write(data)
	return made.Sum(nil)
}

func (r *request) accept(workerRandom []byte) {
	demand(r.response == nil && len(workerRandom) == 32, "SEAL_BROKEN", "a response opens once, with 32 bytes")
	r.response = newStream(responseKey(r.secret, r.transcript, digestOfChunks(r.chunks), workerRandom), toClient)
}

func (r *request) receive(chunk []byte) {
	const code = "SEAL_BROKEN"
	demand(r.response != nil && r.receipt == nil, code, "a chunk before the opening, or after the end")
	reflected := slices.ContainsFunc(r.chunks, func(own []byte) bool { return bytes.Equal(own, chunk) })
	demand(!reflected, "CHUNK_REFLECTED", "our own chunk came back")
	plaintext, final := r.response.open(chunk)
	record := unpad(plaintext, r.ticket.padding, toClient)
	if len(record) == 0 && !final && r.ticket.padding == "strict" {
		return // filling
	}
	demand(final == (r.end != nil), code, "the final chunk holds the receipt, after the end")
	if final {
		r.checkReceipt(record)
		r.receipt = record
		return
	}
	r.commitment.Write(lp(record))
	f := parseFields(record, maxRecord, code)
	value, _ := parseJSON(record)
	switch kind := f.text("type"); {
	case kind == "delta" && r.method == "generate":
		r.text += f.textUpTo("text", 0, maxRecord)
		r.tokens += f.integer("tokens", 0, 1<<31-1)
	case kind == "end":
		f.oneOf("finish_reason", "stop", "length")
		usage := f.nested("usage")
		r.prompt, r.completion = usage.integer("prompt_tokens", 0, 1<<31-1), usage.integer("completion_tokens", 0, 1<<31-1)
		usage.end()
		if _, cached := f.left["cached_tokens"]; cached { // the others answer to what this client does not ask for
			f.integer("cached_tokens", 1, r.prompt)
		}
		r.end = value.(map[string]any)
	case kind == "error":
		f.textUpTo("code", 1, 64)
		f.textUpTo("message", 0, 1024)
		r.end = value.(map[string]any)
	default:
		refuse(code, "a record of another kind")
	}
	f.end()
}

// finish is called when the transport says that the stream is over.
func (r *request) finish() {
	if r.end != nil && r.end["type"] == "error" {
		refuse(r.end["code"].(string), "the worker: %s", r.end["message"])
	}
	demand(r.receipt != nil, "STREAM_TRUNCATED", "the response ended before its final chunk")
}

func readSigned(data []byte) (receipt, signature []byte) {
	f := parseFields(data, maxReceipt, "RECEIPT_INVALID")
	receipt = canonical(f.take("receipt"))
	signature = f.binary("signature", 64, 64)
	f.end()
	return receipt, signature
}

func receiptSigned(receipt, signature, key []byte) bool {
	return ed25519.Verify(key, append([]byte("bulkhead/v1 receipt"), lp(receipt)...), signature)
}

func (r *request) checkReceipt(data []byte) {
	receipt, signature := readSigned(data)
	demand(receiptSigned(receipt, signature, r.keys.receipt), "SIGNATURE_INVALID", "not signed by the worker's receipt key")
	f := parseFields(receipt, maxReceipt, "RECEIPT_INVALID")
	f.integer("version", 1, 1)
	f.integer("number", 1, maxInteger)
	f.integer("ts_us", 0, maxInteger)
	ours := f.text("request_id") == r.id && f.text("method") == r.method && f.text("ticket_id") == r.ticket.id &&
		f.text("tenant") == r.ticket.tenant && f.text("session") == r.ticket.session &&
		bytes.Equal(f.binary("cnf", 32, 32), r.ticket.cnf) && f.text("partition") == r.ticket.partition
	model, tier, simulated := f.text("model"), f.text("tier"), f.boolean("simulated")
	digests := true
	for name, wanted := range map[string][]byte{
		"transcript_hash": r.transcript, "keyset_digest": r.ticket.keysetDigest, "evidence_digest": r.ticket.evidenceDigest,
		"model_digest": r.ticket.modelDigest, "request_commitment": r.requestCommitment,
		"response_commitment": r.commitment.Sum(nil),
	} {
		digests = bytes.Equal(f.digest(name), wanted) && digests
	}
	usage := f.nested("usage")
	prompt, completion := usage.integer("prompt_tokens", 0, 1<<31-1), usage.integer("completion_tokens", 0, 1<<31-1)
	usage.end()
	status, errorCode := f.oneOf("status", "ok", "failed", "cancelled"), f.textUpTo("code", 0, 64)
	f.end()
	demand(ours, f.code, "the receipt is of another request, ticket or partition")
	demand(model == r.ticket.model, "RECEIPT_MODEL", "of another model")
	demand(tier == r.ticket.tier && simulated == r.ticket.simulated, "RECEIPT_TIER", "of another tier")
	demand(digests, "RECEIPT_DIGEST", "of another transcript, worker, request or response")
	if r.end["type"] == "error" {
		demand(status == "failed" && errorCode == r.end["code"], f.code, "the receipt tells another end")
		return
	}
	counted := prompt == r.prompt && completion == r.completion && (r.method != "generate" || completion == r.tokens)
	demand(counted, "RECEIPT_COUNT", "the receipt tells other counts")
	demand(status == "ok" && errorCode == "", f.code, "the receipt tells another end")
}

func fetchMessage(tenant, session, requestID string) []byte {
	return append([]byte("bulkhead/v1 fetch receipt"), lp([]byte(tenant), []byte(session), []byte(requestID))...)
}

// worker opens envelopes, as far as it needs no state: docs/protocol.md section 5, "Order of the worker's checks".
type worker struct {
	authority, tenant, partition string
	modelDigest, issuer, seed    []byte
	tenantRoot                   []byte // fingerprint; no root: empty
	keys                         keyset
}

// open returns the request's secret and transcript hash.
func (w worker) open(envelope []byte, now int64) (secret, transcript []byte) {
	const code = "MALFORMED_REQUEST"
	demand(len(envelope) <= maxEnvelope, "MESSAGE_TOO_LARGE", "longer than any envelope") // 1
	rest := envelope
	take := func(size int) []byte {
		demand(size <= len(rest), code, "cut short")
		piece := rest[:size]
		rest = rest[size:]
		return piece
	}
	prefixed := func(limit int) []byte {
		size := int64(binary.BigEndian.Uint32(take(4)))
		demand(size <= int64(limit), code, "a field is too long")
		return take(int(size))
	}
	demand(take(1)[0] == 1, code, "another version")
	ticket, certificate := prefixed(maxTicket), prefixed(maxSessionCertificate)
	keyID, sequence := take(32), binary.BigEndian.Uint64(take(8))
	requestID, method, sealed := string(prefixed(maxRequestID)), string(prefixed(maxMethod)), prefixed(sealedSize)
	signature := take(64)
	known := isIdentifier(requestID, "req") && (method == "generate" || method == "embed")
	demand(len(rest) == 0 && len(sealed) == sealedSize && known, code, "not an envelope")

	found, _ := verifyTicket(string(ticket), [][]byte{w.issuer}, w.authority, now) // 2
	here := found.tenant == w.tenant && found.partition == w.partition && bytes.Equal(found.modelDigest, w.modelDigest)
	demand(here, "TICKET_INVALID", "for another worker")
	held := bytes.Equal(found.keysetDigest, w.keys.id[:]) && now < w.keys.notAfter
	demand(held, "STALE_KEY", "the keys are not here") // 3
	demand(bytes.Equal(keyID, found.keysetDigest), "KEY_MISMATCH", "sealed to another keyset than the ticket's")
	if len(w.tenantRoot) > 0 { // 4
		verifyCertificate(certificate, w.tenantRoot, w.tenant, found.cnf, now)
	} else {
		demand(len(certificate) == 0, "CERTIFICATE_INVALID", "the tenant has no root")
	}
	info := requestInfo(found, requestID, sequence, method)
	transcript = transcriptHash(info, sealed)
	demand(ed25519.Verify(found.cnf, transcript, signature), "SIGNATURE_INVALID", "not signed by the session key") // 5
	private, err := hpke.MLKEM768X25519().NewPrivateKey(w.seed)
	demand(err == nil, code, "the seed is no key")
	secret, err = hpke.Open(private, hpke.HKDFSHA256(), hpke.AES256GCM(), info, sealed) // 7
	demand(err == nil, "SEAL_BROKEN", "the secret does not open")
	return secret, transcript
}

func hexOf(data []byte) string { return hex.EncodeToString(data) }
