package main

import (
	"bytes"
	"crypto/ed25519"
	"crypto/hpke"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// Every committed vector: docs/protocol.md section 13.

// octets is a byte string that vectors write in hexadecimal.
type octets []byte

func (o *octets) UnmarshalText(text []byte) (err error) {
	*o, err = hex.AppendDecode(nil, text)
	return err
}

func raw(values []octets) [][]byte {
	var found [][]byte
	for _, value := range values {
		found = append(found, value)
	}
	return found
}

type checker struct {
	directory string
	checked   int
	failures  []string
}

func (c *checker) load(name string, into any) {
	data, err := os.ReadFile(filepath.Join(c.directory, name+".json"))
	if err == nil {
		err = json.Unmarshal(data, into)
	}
	demand(err == nil, "CONFIG", "%s: %v", name, err)
}

func (c *checker) expect(holds bool, format string, values ...any) {
	c.checked++
	if !holds {
		c.failures = append(c.failures, fmt.Sprintf(format, values...))
	}
}

// refused expects work to end with a code.
func (c *checker) refused(code, name string, work func()) {
	found := codeOf(attempt(work))
	c.expect(found == code, "%s: %q, not %q", name, found, code)
}

// holds expects work to end without a refusal.
func (c *checker) holds(name string, work func()) {
	ended := attempt(work)
	c.expect(ended == nil, "%s: %v", name, ended)
}

func checkVectors(directory string) *checker {
	c := &checker{directory: directory}
	c.hpke()
	c.schedule()
	c.chunks()
	c.statement()
	e := exchange{}
	c.load("exchange", &e)
	c.exchange(e)
	c.refusals(e)
	c.totals()
	return c
}

func (c *checker) hpke() {
	var cases []struct {
		Seed, Info, Plaintext, Sealed octets
		PublicKey                     octets `json:"public_key"`
	}
	c.load("hpke", &cases)
	kem := hpke.MLKEM768X25519()
	for _, v := range cases {
		private, err := kem.NewPrivateKey(v.Seed)
		demand(err == nil, "CONFIG", "seed: %v", err)
		c.expect(bytes.Equal(private.PublicKey().Bytes(), v.PublicKey), "hpke: public key of %s", v.Info)
		opened, err := hpke.Open(private, hpke.HKDFSHA256(), hpke.AES256GCM(), v.Info, v.Sealed)
		c.expect(err == nil && bytes.Equal(opened, v.Plaintext), "hpke: %s does not open", v.Info)
	}
}

func (c *checker) schedule() {
	var v struct {
		Secret, Commitment octets
		Transcript         octets `json:"transcript_hash"`
		RequestDigest      octets `json:"request_digest"`
		WorkerRandom       octets `json:"worker_random"`
		ToServer           octets `json:"client_to_server"`
		ToClient           octets `json:"server_to_client"`
	}
	c.load("schedule", &v)
	c.expect(bytes.Equal(requestKey(v.Secret, v.Transcript), v.ToServer), "schedule: c2s")
	c.expect(bytes.Equal(responseKey(v.Secret, v.Transcript, v.RequestDigest, v.WorkerRandom), v.ToClient), "schedule: s2c")
	c.expect(bytes.Equal(commitKey(v.Secret, v.Transcript), v.Commitment), "schedule: commit")
}

func (c *checker) chunks() {
	var cases []struct {
		Material        octets `json:"key_material"`
		Direction       byte
		Padding         string
		Records, Chunks []octets
	}
	c.load("chunks", &cases)
	for _, v := range cases {
		sealer, opener := newStream(v.Material, v.Direction), newStream(v.Material, v.Direction)
		for place, record := range v.Records {
			name, last := fmt.Sprintf("chunks %d %s %d", v.Direction, v.Padding, place), place == len(v.Records)-1
			sealed := sealer.seal(pad(record, v.Padding, v.Direction), last)
			c.expect(bytes.Equal(sealed, v.Chunks[place]), "%s: sealed", name)
			c.holds(name, func() {
				plaintext, final := opener.open(v.Chunks[place])
				same := bytes.Equal(unpad(plaintext, v.Padding, v.Direction), record)
				demand(same && final == last, "SEAL_BROKEN", "another record")
			})
		}
	}
}

func (c *checker) statement() {
	var v struct {
		Tenant, Session, Descriptor string
		Cnf                         octets
		ModelDigest                 octets `json:"model_digest"`
		DecisionLeafHash            octets `json:"decision_leaf_hash"`
		PolicyDigest                octets `json:"policy_digest"`
		SessionContext              octets `json:"session_context"`
		Nonces                      []octets
		BatchRoot                   octets `json:"batch_root"`
		Paths                       [][]octets
		KeysetDigest                octets `json:"keyset_digest"`
		DeviceDigest                octets `json:"device_digest"`
		NotAfter                    int64  `json:"not_after_s"`
		Statement                   octets
		GPUNonce                    octets `json:"gpu_nonce"`
	}
	c.load("statement", &v)
	context := sessionContext(v.Tenant, v.Session, v.Cnf, v.ModelDigest, v.DecisionLeafHash, v.PolicyDigest)
	c.expect(bytes.Equal(context, v.SessionContext), "statement: session context")
	for index, nonce := range v.Nonces {
		root, sound := rootFromPath(batchLeaf(nonce, context), uint64(index), uint64(len(v.Nonces)), raw(v.Paths[index]))
		c.expect(sound && bytes.Equal(root, v.BatchRoot), "statement: path %d", index)
	}
	made := statement(v.BatchRoot, v.KeysetDigest, v.DeviceDigest, []byte(v.Descriptor), v.NotAfter)
	c.expect(bytes.Equal(made, v.Statement), "statement")
	nonce := sha256.Sum256(append([]byte("bulkhead/v1 gpu"), lp(v.BatchRoot, v.KeysetDigest)...))
	c.expect(bytes.Equal(nonce[:], v.GPUNonce), "statement: GPU nonce")
	value, _ := parseJSON([]byte(v.Descriptor))
	c.holds("statement: descriptor", func() { readDescriptor(value) })
}

type provenRecord struct {
	Leaf, Checkpoint string
	Index            uint64
	Proof            []octets
}

func (p provenRecord) receipt() auditReceipt {
	return auditReceipt{[]byte(p.Leaf), p.Index, raw(p.Proof), p.Checkpoint}
}

type exchange struct {
	Now              int64 `json:"now_s"`
	Tenant, Session  string
	Partition, Model string
	OpenRequestID    string `json:"open_request_id"`
	MinimumTier      string `json:"minimum_tier"`
	Nonce, Cnf       octets
	SessionKeySeed   octets `json:"session_key_seed"`
	TenantRootSeed   octets `json:"tenant_root_seed"`
	TenantRoot       octets `json:"tenant_root"`
	Certificate      string `json:"certificate"`
	LogVkey          string `json:"log_vkey"`
	OperatorKey      octets `json:"operator_key"`
	TicketIssuer     octets `json:"ticket_issuer"`
	ModelDigest      octets `json:"model_digest"`
	PolicyDigest     octets `json:"policy_digest"`
	Decision         provenRecord
	DecisionLeafHash octets `json:"decision_leaf_hash"`
	KEMSeed          octets `json:"request_kem_seed"`
	Keyset           string
	KeyID            octets `json:"key_id"`
	TLSCertificate   octets `json:"worker_certificate"`
	Evidence         string
	EvidenceDigest   octets `json:"evidence_digest"`
	Authority        string
	Ticket           string
	Info             octets
	TranscriptHash   octets `json:"transcript_hash"`
	Secret, Envelope octets
	Payload          string
	RequestChunks    []octets `json:"request_chunks"`
	WorkerRandom     octets   `json:"worker_random"`
	Records          []string
	ResponseChunks   []octets `json:"response_chunks"`
	Receipt          string
	ReceiptDigest    octets `json:"receipt_digest"`
	FetchSignature   octets `json:"receipt_fetch_signature"`
}

func (e exchange) trust() trust {
	return trust{AcceptedKinds: []string{"operator"}, OperatorKeys: [][]byte{e.OperatorKey}, MinimumTier: "gpu"}
}

func (e exchange) worker() worker {
	return worker{e.Authority, e.Tenant, e.Partition, e.ModelDigest, e.TicketIssuer, e.KEMSeed, e.TenantRoot,
		parseKeyset([]byte(e.Keyset))}
}

func (e exchange) grant(decided provenRecord) grant {
	return e.grantOf(decided, e.Evidence, e.Ticket, [][]byte{e.TenantRoot})
}

func (e exchange) grantOf(decided provenRecord, evidence, ticket string, roots [][]byte) grant {
	given := offer{
		session: e.Session, ticket: ticket, authority: e.Authority, certificate: e.TLSCertificate, evidence: []byte(evidence),
		modelDigest: e.ModelDigest, policyDigest: e.PolicyDigest, decision: decided.receipt(),
	}
	wanted := expectation{e.Tenant, e.OpenRequestID, e.Model, e.MinimumTier, "default", e.Nonce, e.Cnf}
	return verifyGrant(given, wanted, e.LogVkey, [][]byte{e.TicketIssuer}, roots, e.trust(), e.Now)
}

// request returns the exchange's request, waiting for its response.
func (e exchange) request() *request {
	held := e.grant(e.Decision)
	made := &request{ticket: held.ticket, keys: held.keys, id: "req_01h455vb4pex5vsknk084sn02q", method: "generate",
		envelope: e.Envelope, chunks: raw(e.RequestChunks)}
	made.expect(e.Secret, e.TranscriptHash, []byte(e.Payload))
	return made
}

func (c *checker) exchange(e exchange) {
	c.holds("exchange: grant", func() {
		held := e.grant(e.Decision)
		c.expect(bytes.Equal(held.keys.id[:], e.KeyID), "exchange: key id")
		c.expect(bytes.Equal(held.ticket.evidenceDigest, e.EvidenceDigest), "exchange: evidence digest")
		c.expect(bytes.Equal(held.decisionLeafHash, e.DecisionLeafHash), "exchange: decision leaf hash")
		info := requestInfo(held.ticket, "req_01h455vb4pex5vsknk084sn02q", 0, "generate")
		c.expect(bytes.Equal(info, e.Info), "exchange: info")
	})
	c.holds("exchange: envelope", func() {
		secret, transcript := e.worker().open(e.Envelope, e.Now)
		c.expect(bytes.Equal(secret, e.Secret), "exchange: secret")
		c.expect(bytes.Equal(transcript, e.TranscriptHash), "exchange: transcript hash")
	})
	c.holds("exchange: request chunks", func() {
		opener := newStream(requestKey(e.Secret, e.TranscriptHash), toServer)
		var payload []byte
		for _, chunk := range e.RequestChunks {
			plaintext, _ := opener.open(chunk)
			payload = append(payload, unpad(plaintext, "default", toServer)...)
		}
		value, _ := parseJSON(payload)
		same := opener.closed && string(payload) == e.Payload && bytes.Equal(canonical(value), payload)
		demand(same, "SEAL_BROKEN", "another payload")
	})
	c.holds("exchange: response", func() {
		sent := e.request()
		sent.accept(e.WorkerRandom)
		for _, chunk := range e.ResponseChunks {
			sent.receive(chunk)
		}
		sent.finish()
		digest := sha256.Sum256(sent.receipt)
		c.expect(string(sent.receipt) == e.Receipt && bytes.Equal(digest[:], e.ReceiptDigest), "exchange: receipt")
		c.expect(sent.text == "The capital of France is Paris.", "exchange: text %q", sent.text)
	})
	key := ed25519.NewKeyFromSeed(e.SessionKeySeed)
	c.expect(bytes.Equal(key.Public().(ed25519.PublicKey), e.Cnf), "exchange: session key")
	c.certificate(e)
	signed := ed25519.Sign(key, fetchMessage(e.Tenant, e.Session, "req_01h455vb4pex5vsknk084sn02q"))
	c.expect(bytes.Equal(signed, e.FetchSignature), "exchange: receipt fetch")
}

func (c *checker) certificate(e exchange) {
	root := ed25519.NewKeyFromSeed(e.TenantRootSeed)
	c.expect(bytes.Equal(fingerprintOf(root.Public().(ed25519.PublicKey)), e.TenantRoot), "exchange: tenant root")
	c.holds("exchange: certificate", func() { verifyCertificate([]byte(e.Certificate), e.TenantRoot, e.Tenant, e.Cnf, e.Now) })
	c.expect(bytes.Contains(e.Envelope, lp([]byte(e.Ticket), []byte(e.Certificate))), "exchange: envelope's certificate")
	ours, now := certify(root, e.Tenant, e.Cnf), time.Now().Unix()
	c.holds("a certificate of our own", func() { verifyCertificate(ours, e.TenantRoot, e.Tenant, e.Cnf, now) })
}

func (c *checker) refusals(e exchange) {
	type refused struct {
		Name, Code string
		Now        int64 `json:"now_s"`
	}
	var v struct {
		Chunks []struct {
			refused
			Material octets `json:"key_material"`
			Chunks   []octets
		}
		Plaintexts []struct {
			refused
			Padding   string
			Plaintext octets
		}
		Envelopes []struct {
			refused
			Envelope octets
			Worker   *struct {
				Authority, Tenant, Partition string
				TicketIssuer                 octets `json:"ticket_issuer"`
				Keyset                       string
				TenantRoot                   octets `json:"tenant_root"`
			}
		}
		Certificates []struct {
			refused
			Certificate string
		}
		Roots []struct {
			refused
			Evidence, Ticket string
			Roots            []octets `json:"tenant_roots"`
		}
		Tickets []struct {
			refused
			Ticket string
		}
		Evidence []struct {
			refused
			Evidence string
			Nonce    octets
		}
		Decisions []struct {
			refused
			provenRecord
		}
		Responses []struct {
			refused
			Chunks []octets
		}
	}
	c.load("refusals", &v)
	for _, r := range v.Chunks {
		opener := newStream(r.Material, toClient)
		last := len(r.Chunks) - 1
		c.holds("chunks before "+r.Name, func() {
			for _, chunk := range r.Chunks[:last] {
				opener.open(chunk)
			}
		})
		c.refused(r.Code, "chunk "+r.Name, func() { opener.open(r.Chunks[last]) })
	}
	for _, r := range v.Plaintexts {
		c.refused(r.Code, "plaintext "+r.Name, func() { unpad(r.Plaintext, r.Padding, toClient) })
	}
	for _, r := range v.Envelopes {
		at := e.worker()
		if other := r.Worker; other != nil {
			at = worker{other.Authority, other.Tenant, other.Partition, e.ModelDigest, other.TicketIssuer, nil,
				other.TenantRoot, parseKeyset([]byte(other.Keyset))}
		}
		c.refused(r.Code, "envelope "+r.Name, func() { at.open(r.Envelope, r.Now) })
	}
	for _, r := range v.Certificates {
		c.refused(r.Code, "certificate "+r.Name, func() {
			verifyCertificate([]byte(r.Certificate), e.TenantRoot, e.Tenant, e.Cnf, r.Now)
		})
	}
	for _, r := range v.Roots {
		c.refused(r.Code, "root "+r.Name, func() { e.grantOf(e.Decision, r.Evidence, r.Ticket, raw(r.Roots)) })
	}
	for _, r := range v.Tickets {
		c.refused(r.Code, "ticket "+r.Name, func() { verifyTicket(r.Ticket, [][]byte{e.TicketIssuer}, e.Authority, r.Now) })
	}
	context := sessionContext(e.Tenant, e.Session, e.Cnf, e.ModelDigest, e.DecisionLeafHash, e.PolicyDigest)
	for _, r := range v.Evidence {
		c.refused(r.Code, "evidence "+r.Name, func() { appraise([]byte(r.Evidence), r.Nonce, context, e.trust(), r.Now) })
	}
	for _, r := range v.Decisions {
		c.refused(r.Code, "decision "+r.Name, func() { e.grant(r.provenRecord) })
	}
	for _, r := range v.Responses {
		c.refused(r.Code, "response "+r.Name, func() {
			sent := e.request()
			sent.accept(e.WorkerRandom)
			for _, chunk := range r.Chunks {
				sent.receive(slices.Clone([]byte(chunk)))
			}
			sent.finish()
		})
	}
}
