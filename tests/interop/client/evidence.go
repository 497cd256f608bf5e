package main

import (
	"bytes"
	"crypto/ed25519"
	"crypto/hpke"
	"crypto/sha256"
	"crypto/sha512"
	"slices"
)

// Worker keys and evidence: docs/protocol.md sections 2 and 3.

const (
	suite       = "MLKEM768_X25519,HKDF_SHA256,AES_256_GCM"
	kemKeySize  = 1216
	maxKeyset   = 8192
	maxEvidence = 2 << 20
	maxBatch    = 1 << 16
	maxPath     = 16
	maxDevice   = 1_500_000
	maxQuote    = 65_536
	dayS        = 24 * 3600
	skewS       = 60
)

var tiers = []string{"process", "mig", "gpu", "confidential"}

func tierOf(name string) int { return slices.Index(tiers, name) }

type keyset struct {
	id                       [32]byte
	requestKEM, receipt, tls []byte
	notAfter                 int64
}

func parseKeyset(data []byte) keyset {
	f := parseFields(data, maxKeyset, "EVIDENCE_INVALID")
	f.integer("version", 1, 1)
	f.oneOf("suite", suite)
	keys := f.nested("keys")
	f.end()
	made := keyset{id: sha256.Sum256(data), notAfter: maxInteger}
	read := func(name string, size, limit int) []byte {
		key := keys.nested(name)
		made.notAfter = min(made.notAfter, key.integer("not_after", 1, maxInteger))
		public := key.binary("public", size, limit)
		key.end()
		return public
	}
	made.requestKEM = read("request_kem", kemKeySize, kemKeySize)
	weights := read("weights_kem", kemKeySize, kemKeySize)
	made.receipt = read("receipt", 32, 32)
	made.tls = read("tls", -1, 512)
	keys.end()
	for _, key := range [][]byte{made.requestKEM, weights} {
		_, err := hpke.MLKEM768X25519().NewPublicKey(key)
		demand(err == nil, f.code, "a KEM key is not valid")
	}
	demand(!bytes.Equal(made.requestKEM, weights), f.code, "one KEM key for two uses")
	return made
}

type descriptor struct {
	encoded                        []byte
	partition, tenant, tier, model string
	simulated                      bool
	issuers                        [][]byte
	modelDigest, tenantRoot        []byte // no root: nil
}

func readDescriptor(value any) descriptor {
	f := asFields(value, "EVIDENCE_INVALID")
	made := descriptor{encoded: canonical(value)}
	f.integer("version", 1, 1)
	made.partition, made.tenant, made.model = f.text("partition"), f.text("tenant"), f.text("model")
	made.tier = f.oneOf("tier", tiers...)
	made.simulated = f.boolean("simulated")
	f.oneOf("phase", "boot", "serving")
	for _, name := range []string{"region", "rack", "tray", "agent", "software"} {
		f.text(name)
	}
	for _, item := range f.list("gpus", 0, 576) {
		text, is := item.(string)
		demand(is && 0 < len([]rune(text)) && len([]rune(text)) <= 256, f.code, "gpus holds no texts")
	}
	f.integer("memory_mib", 0, maxInteger)
	made.issuers = f.digests("ticket_issuers", 1, 4)
	if root := f.take("tenant_root"); root != nil {
		made.tenantRoot = f.asDigest(root, "tenant_root")
	}
	made.modelDigest = f.digest("model_digest")
	f.end()
	return made
}

func sessionContext(tenant, session string, cnf, modelDigest, decisionLeafHash, policyDigest []byte) []byte {
	return lp([]byte(tenant), []byte(session), cnf, modelDigest, decisionLeafHash, policyDigest)
}

func batchLeaf(nonce, context []byte) []byte {
	leaf := sha256.Sum256(append([]byte{0}, lp(nonce, context)...))
	return leaf[:]
}

func treeNode(left, right []byte) []byte {
	node := sha256.Sum256(slices.Concat([]byte{1}, left, right))
	return node[:]
}

// rootFromPath follows RFC 9162 section 2.1.3.2; false if the path has another length than index and size demand.
func rootFromPath(node []byte, index, size uint64, path [][]byte) ([]byte, bool) {
	if index >= size {
		return nil, false
	}
	last := size - 1
	for _, sibling := range path {
		if last == 0 {
			return nil, false
		}
		if index&1 == 1 || index == last {
			node = treeNode(sibling, node)
			for index&1 == 0 && index != 0 {
				index, last = index>>1, last>>1
			}
		} else {
			node = treeNode(node, sibling)
		}
		index, last = index>>1, last>>1
	}
	return node, last == 0
}

func statement(batchRoot, keyID, deviceDigest, descriptor []byte, notAfter int64) []byte {
	fields := lp(batchRoot, keyID, deviceDigest, descriptor, u64(uint64(notAfter)))
	made := sha512.Sum512(append([]byte("bulkhead/v1 evidence"), fields...))
	return made[:]
}

// trust is the tenant's trust policy, as far as this client goes: it verifies no hardware evidence.
type trust struct {
	AcceptedKinds   []string `json:"accepted_kinds"`
	OperatorKeys    [][]byte `json:"operator_keys"`
	MinimumTier     string   `json:"minimum_tier"`
	DevelopmentMode bool     `json:"development_mode"`
}

type appraised struct {
	kind       string
	keyset     keyset
	descriptor descriptor
	digest     [32]byte
	notAfter   int64
}

func appraise(encoded, nonce, context []byte, policy trust, now int64) appraised {
	f := parseFields(encoded, maxEvidence, "EVIDENCE_INVALID") // 1
	f.integer("version", 1, 1)
	kind := f.oneOf("kind", "hardware", "operator", "simulated")
	batch := f.nested("batch")
	index, size := batch.integer("index", 0, maxBatch-1), batch.integer("size", 1, maxBatch)
	path := batch.digests("path", 0, maxPath)
	batch.end()
	keysetValue := canonical(f.take("keyset"))
	found := readDescriptor(f.take("descriptor"))
	device := f.binary("device", -1, maxDevice)
	notAfter := f.integer("not_after", 1, maxInteger)
	signer, quote := f.binary("signer", -1, 32), f.binary("quote", -1, maxQuote)
	f.end()
	simulated := kind == "simulated"
	demand(policy.DevelopmentMode || !simulated && !found.simulated, "EVIDENCE_SIMULATED", "the worker is simulated")
	demand(found.simulated == simulated, f.code, "evidence and descriptor disagree about what is simulated")
	demand(slices.Contains(policy.AcceptedKinds, kind), "EVIDENCE_POLICY", "the kind is not accepted")
	demand(kind != "hardware", f.code, "this client verifies no hardware evidence")

	root, sound := rootFromPath(batchLeaf(nonce, context), uint64(index), uint64(size), path) // 2
	demand(sound, "EVIDENCE_BINDING", "the batch path is malformed")

	pinned := simulated || slices.ContainsFunc(policy.OperatorKeys, func(key []byte) bool { return bytes.Equal(key, signer) })
	demand(pinned, "EVIDENCE_POLICY", "the operator's key is not pinned") // 3
	keyID, deviceDigest := sha256.Sum256(keysetValue), sha256.Sum256(device)
	message := append([]byte("bulkhead/v1 "+kind+" evidence"),
		statement(root, keyID[:], deviceDigest[:], found.encoded, notAfter)...)
	holds := len(signer) == ed25519.PublicKeySize && ed25519.Verify(signer, message, quote)
	demand(holds, "EVIDENCE_BINDING", "the evidence is of something else")

	demand(now < notAfter, "EVIDENCE_EXPIRED", "the evidence has expired") // 4
	demand(notAfter <= now+dayS+skewS, f.code, "the evidence outlives any keys")

	demand(simulated || found.tier != "confidential", f.code, "operator evidence cannot show that tier") // 5
	demand(tierOf(found.tier) >= tierOf(policy.MinimumTier), "EVIDENCE_POLICY", "the tier is below the policy's")
	return appraised{kind, parseKeyset(keysetValue), found, sha256.Sum256(encoded), notAfter}
}
