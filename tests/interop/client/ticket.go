package main

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/hex"
	"slices"
	"strings"
)

// Tickets: docs/protocol.md section 4.

const (
	maxTicket     = 4096
	maxTicketLife = 900
)

var paddings = []string{"off", "default", "strict"}

type claims struct {
	id, audience, tenant, session, partition, tier, model, padding   string
	cnf, modelDigest, keysetDigest, evidenceDigest, decisionLeafHash []byte
	simulated                                                        bool
	issuedAt, expiresAt                                              int64
}

// verifyTicket returns the claims of a ticket by a pinned issuer that holds now, and the issuer's fingerprint.
func verifyTicket(token string, issuers [][]byte, audience string, now int64) (claims, []byte) {
	const code = "TICKET_INVALID"
	parts := strings.Split(token, ".")
	demand(len(token) <= maxTicket && len(parts) == 3, code, "no ticket")
	decoded := func(part string) *fields {
		data, canonical := base64url(part)
		value, whole := parseJSON(data)
		demand(canonical && whole, code, "no JWT")
		return asFields(value, code)
	}
	header := decoded(parts[0])
	header.oneOf("alg", "EdDSA")
	header.oneOf("typ", "bulkhead-ticket+jwt")
	kid := header.digest("kid")
	header.end()
	place := slices.IndexFunc(issuers, func(key []byte) bool {
		fingerprint := sha256.Sum256(key)
		return hex.EncodeToString(fingerprint[:]) == hex.EncodeToString(kid)
	})
	demand(place >= 0, code, "the issuer is not pinned")
	signature, sound := base64url(parts[2])
	demand(sound && ed25519.Verify(issuers[place], []byte(parts[0]+"."+parts[1]), signature), code, "not signed")

	f := decoded(parts[1])
	f.integer("ver", 1, 1)
	made := claims{
		id: f.text("jti"), audience: f.text("aud"), tenant: f.text("tenant"), session: f.text("session"),
		partition: f.text("partition"), tier: f.oneOf("tier", tiers...), model: f.text("model"),
		padding: f.oneOf("padding", paddings...), simulated: f.boolean("simulated"),
		modelDigest: f.digest("model_digest"), keysetDigest: f.digest("keyset_digest"),
		evidenceDigest: f.digest("evidence_digest"), decisionLeafHash: f.digest("decision_leaf_hash"),
		issuedAt: f.integer("iat", 0, maxInteger), expiresAt: f.integer("exp", 0, maxInteger),
	}
	confirmation := f.nested("cnf")
	key := confirmation.nested("jwk")
	confirmation.end()
	key.oneOf("kty", "OKP")
	key.oneOf("crv", "Ed25519")
	made.cnf = key.binary("x", 32, 32)
	key.end()
	limits := f.nested("limits")
	limits.integer("max_tokens", 1, 1<<31-1)
	limits.integer("max_concurrent_requests", 1, 65_536)
	limits.end()
	f.end()

	life := made.expiresAt - made.issuedAt
	demand(made.audience == audience, code, "for another worker")
	demand(0 < life && life <= maxTicketLife, code, "of another life than tickets have")
	demand(made.issuedAt <= now+skewS, "CLOCK_SKEW", "from the future")
	demand(now < made.expiresAt, "TICKET_EXPIRED", "expired")
	return made, kid
}
