package main

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/binary"
	"net/http"
	"os"
	"slices"
	"time"
)

// Opening, verifying and using a session: docs/protocol.md section 4.

const maxCertificate = 4096

// settings is the client's own configuration, from no server.
type settings struct {
	Address       string   `json:"address"`
	ServerName    string   `json:"server_name"`
	AuthorityFile string   `json:"authority_file"`
	APIKey        string   `json:"api_key"`
	Tenant        string   `json:"tenant"`
	LogVkey       string   `json:"log_vkey"`
	TicketIssuers [][]byte `json:"ticket_issuers"`
	Trust         trust    `json:"trust"`
	Model         string   `json:"model"`
	Region        string   `json:"region"`
	Purpose       string   `json:"purpose"`
	DataClasses   []string `json:"data_classes"`
	MinimumTier   string   `json:"minimum_tier"`
	Padding       string   `json:"padding"`
	Prompt        string   `json:"prompt"`
	MaxTokens     int64    `json:"max_tokens"`
	RootSeed      []byte   `json:"tenant_root_seed"` // of the tenant's root, 32 bytes; no root: absent
}

type offer struct {
	session, ticket, address, authority              string
	certificate, evidence, modelDigest, policyDigest []byte
	decision                                         auditReceipt
}

type grant struct {
	ticket           claims
	keys             keyset
	kind             string
	decisionLeafHash []byte
	certificate      *x509.Certificate
	notAfter         int64
}

// expectation is what a client knows by itself about a session.
type expectation struct {
	tenant, requestID, model, minimumTier, padding string
	nonce, cnf                                     []byte
}

func verifyGrant(given offer, wanted expectation, vkey string, issuers, roots [][]byte, policy trust, now int64) grant {
	leafHash := verifyReceipt(given.decision, vkey) // 1
	decided := checkDecision(given.decision.leaf, decision{
		tenant: wanted.tenant, requestID: wanted.requestID, session: given.session, model: wanted.model,
		minimumTier: wanted.minimumTier, policyDigest: given.policyDigest,
	})
	context := sessionContext(wanted.tenant, given.session, wanted.cnf, given.modelDigest, leafHash, given.policyDigest)
	worker := appraise(given.evidence, wanted.nonce, context, policy, now) // 2

	keys := worker.keyset // 3
	demand(now < keys.notAfter, "EVIDENCE_EXPIRED", "the keys have expired")
	demand(worker.notAfter <= keys.notAfter, "EVIDENCE_INVALID", "the evidence outlives its keys")
	demand(len(given.certificate) <= maxCertificate, "EVIDENCE_BINDING", "the certificate is too long")
	certificate, err := x509.ParseCertificate(given.certificate)
	bound := err == nil && bytes.Equal(certificate.RawSubjectPublicKeyInfo, keys.tls)
	demand(bound, "EVIDENCE_BINDING", "the TLS key is not in the keyset")

	found := worker.descriptor // 4
	ours := found.tenant == wanted.tenant && found.model == wanted.model && bytes.Equal(found.modelDigest, given.modelDigest)
	demand(ours, "EVIDENCE_BINDING", "another tenant's partition, or another model")
	least := max(tierOf(decided), tierOf(wanted.minimumTier))
	demand(tierOf(found.tier) >= least, "DOWNGRADED", "a weaker tier than decided or asked for")
	checkTenantRoot(found, roots)

	ticket, issuer := verifyTicket(given.ticket, issuers, given.authority, now) // 5
	listed := slices.ContainsFunc(found.issuers, func(key []byte) bool { return bytes.Equal(key, issuer) })
	demand(listed, "EVIDENCE_BINDING", "the worker takes tickets of other issuers")
	equal := ticket.tenant == wanted.tenant && ticket.session == given.session && bytes.Equal(ticket.cnf, wanted.cnf) &&
		ticket.partition == found.partition && ticket.tier == found.tier && ticket.simulated == (worker.kind == "simulated") &&
		ticket.model == wanted.model && bytes.Equal(ticket.modelDigest, given.modelDigest) &&
		bytes.Equal(ticket.keysetDigest, keys.id[:]) && bytes.Equal(ticket.evidenceDigest, worker.digest[:]) &&
		bytes.Equal(ticket.decisionLeafHash, leafHash)
	demand(equal, "TICKET_INVALID", "the ticket names something else than was verified")
	padded := slices.Index(paddings, ticket.padding) >= slices.Index(paddings, wanted.padding)
	demand(padded, "DOWNGRADED", "less padding than asked for")
	return grant{ticket, keys, worker.kind, leafHash, certificate, min(worker.notAfter, keys.notAfter, ticket.expiresAt)}
}

// identity returns the fingerprints of the tenant's own root, and what the client signs with.
func identity(configured settings, key ed25519.PrivateKey) ([][]byte, signer) {
	if configured.RootSeed == nil {
		return nil, signer{key: key}
	}
	demand(len(configured.RootSeed) == ed25519.SeedSize, "CONFIG", "a root's seed has 32 bytes")
	root := ed25519.NewKeyFromSeed(configured.RootSeed)
	certificate := certify(root, configured.Tenant, key.Public().(ed25519.PublicKey))
	return [][]byte{fingerprintOf(root.Public().(ed25519.PublicKey))}, signer{key, certificate}
}

func newIdentifier(prefix string) string {
	const alphabet = "0123456789abcdefghjkmnpqrstvwxyz"
	var value [17]byte // one zero byte ahead: 26 digits of 5 bits are 130 bits
	rand.Read(value[1:])
	binary.BigEndian.PutUint64(value[1:], uint64(time.Now().UnixMilli())<<16|uint64(value[7])<<8|uint64(value[8]))
	value[7], value[9] = value[7]&0x0f|0x70, value[9]&0x3f|0x80
	digits := make([]byte, 26)
	for place := range digits {
		for bit := range 5 {
			at := 6 + place*5 + bit
			digits[place] = digits[place]<<1 | value[at/8]>>(7-at%8)&1
		}
		digits[place] = alphabet[digits[place]]
	}
	return prefix + "_" + string(digits)
}

func openSession(ctx context.Context, control *peer, configured settings, wanted expectation) offer {
	sent := slices.Concat(
		textField(1, wanted.requestID), textField(2, wanted.model), uintField(3, uint64(tierOf(wanted.minimumTier)+1)),
		textField(4, configured.Region), textField(5, configured.Purpose), bytesField(8, wanted.cnf),
		bytesField(9, wanted.nonce), textField(10, wanted.padding))
	for _, class := range configured.DataClasses {
		sent = append(sent, textField(6, class)...)
	}
	var ready message
	control.call(ctx, "/bulkhead.v1.SessionService/OpenSession", sent, func(event message) {
		if len(event[2]) > 0 {
			ready = event.nested(2)
		}
	})
	demand(ready != nil, "STREAM_TRUNCATED", "the open ended without an answer")
	endpoint, proven := ready.nested(9), ready.nested(13)
	return offer{
		session: ready.text(1), ticket: ready.text(8), address: endpoint.text(1), authority: endpoint.text(2),
		certificate: ready.bytes(10), evidence: ready.bytes(12), modelDigest: ready.bytes(14), policyDigest: ready.bytes(15),
		decision: auditReceipt{proven.bytes(3), proven.integer(2), proven[4], proven.text(5)},
	}
}

// ask opens a session, sends one prompt, reads the answer, fetches the receipt once more and closes the session.
func ask(ctx context.Context, configured settings) map[string]any {
	authority, err := os.ReadFile(configured.AuthorityFile)
	roots := x509.NewCertPool()
	demand(err == nil && roots.AppendCertsFromPEM(authority), "CONFIG", "no authority in %s", configured.AuthorityFile)
	control := dial(configured.Address, configured.ServerName, roots,
		http.Header{"Authorization": {"Bearer " + configured.APIKey}})
	public, key, _ := ed25519.GenerateKey(nil)
	wanted := expectation{
		tenant: configured.Tenant, requestID: newIdentifier("req"), model: configured.Model,
		minimumTier: configured.MinimumTier, padding: configured.Padding, nonce: make([]byte, 32), cnf: public,
	}
	rand.Read(wanted.nonce)
	given := openSession(ctx, control, configured, wanted)
	own, by := identity(configured, key)
	held := verifyGrant(given, wanted, configured.LogVkey, configured.TicketIssuers, own, configured.Trust, time.Now().Unix())

	sole := x509.NewCertPool()
	sole.AddCert(held.certificate)
	worker := dial(given.address, given.authority, sole, nil)
	payload := canonical(map[string]any{
		"messages":    []any{map[string]any{"role": "user", "content": configured.Prompt}},
		"max_tokens":  configured.MaxTokens,
		"temperature": int64(0),
	})
	sent := newRequest(given.ticket, held.ticket, held.keys, by, newIdentifier("req"), "generate", payload, 0)
	started := time.Now()
	messages, chunks := converse(ctx, worker, sent)
	took := time.Since(started)
	digest := sha256.Sum256(sent.receipt)
	result := map[string]any{
		"text": sent.text, "end": sent.end, "session": given.session, "request_id": sent.id, "kind": held.kind,
		"tier": held.ticket.tier, "simulated": held.ticket.simulated, "padding": held.ticket.padding,
		"tokens": sent.tokens, "messages": messages, "chunks": chunks, "seconds": took.Seconds(),
		"receipt": string(sent.receipt), "receipt_digest": hexOf(digest[:]),
		"fetched_receipt_digest": fetchReceipt(ctx, worker, given.ticket, held, sent.id, by),
		"replay":                 codeOf(attempt(func() { converse(ctx, worker, again(sent)) })),
		"stolen_ticket":          stolenTicket(ctx, worker, given.ticket, held, by, payload),
		"uncertified":            uncertified(ctx, worker, given.ticket, held, by, payload),
	}
	control.call(ctx, "/bulkhead.v1.SessionService/CloseSession", textField(1, given.session), func(message) {})
	return result
}

// converse sends a request and reads its response; it returns how many messages and chunks that had.
func converse(ctx context.Context, worker *peer, sent *request) (messages, chunks int) {
	body := bytesField(1, sent.envelope)
	for _, chunk := range sent.chunks {
		body = append(body, bytesField(2, chunk)...)
	}
	worker.call(ctx, "/bulkhead.v1.InferenceService/Generate", body, func(part message) {
		messages++
		if random := part.bytes(1); len(random) > 0 {
			sent.accept(random)
		}
		for _, chunk := range part[2] {
			chunks++
			sent.receive(chunk)
		}
	})
	sent.finish()
	return messages, chunks
}

func again(sent *request) *request {
	return &request{ticket: sent.ticket, keys: sent.keys, id: sent.id, method: sent.method, envelope: sent.envelope, chunks: sent.chunks}
}

// stolenTicket returns the code with which a request under somebody else's ticket is refused.
func stolenTicket(ctx context.Context, worker *peer, ticket string, held grant, by signer, payload []byte) string {
	_, by.key, _ = ed25519.GenerateKey(nil)
	sent := newRequest(ticket, held.ticket, held.keys, by, newIdentifier("req"), "generate", payload, 1)
	return codeOf(attempt(func() { converse(ctx, worker, sent) }))
}

// uncertified returns the code with which a request is refused whose session key no root vouches for.
func uncertified(ctx context.Context, worker *peer, ticket string, held grant, by signer, payload []byte) string {
	_, stranger, _ := ed25519.GenerateKey(nil)
	by.certificate = certify(stranger, held.ticket.tenant, held.ticket.cnf)
	sent := newRequest(ticket, held.ticket, held.keys, by, newIdentifier("req"), "generate", payload, 1)
	return codeOf(attempt(func() { converse(ctx, worker, sent) }))
}

func fetchReceipt(ctx context.Context, worker *peer, ticket string, held grant, id string, by signer) string {
	signature := ed25519.Sign(by.key, fetchMessage(held.ticket.tenant, held.ticket.session, id))
	sent := slices.Concat(textField(1, ticket), textField(2, id), bytesField(3, signature), bytesField(4, by.certificate))
	var encoded []byte
	worker.call(ctx, "/bulkhead.v1.InferenceService/GetReceipt", sent, func(reply message) {
		holds := receiptSigned(reply.bytes(1), reply.bytes(2), held.keys.receipt)
		demand(holds, "SIGNATURE_INVALID", "the fetched receipt is not signed by the worker's receipt key")
		receipt, _ := parseJSON(reply.bytes(1))
		encoded = canonical(map[string]any{"receipt": receipt, "signature": base64urlOf(reply.bytes(2))})
	})
	digest := sha256.Sum256(encoded)
	return hexOf(digest[:])
}

func codeOf(ended *refusal) string {
	if ended == nil {
		return ""
	}
	return ended.code
}
