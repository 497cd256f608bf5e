package main

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"strconv"
	"strings"
)

// Audit receipts: docs/protocol.md section 4.

const maxLeaf = 16_384

type auditReceipt struct {
	leaf       []byte
	index      uint64
	proof      [][]byte
	checkpoint string
}

// verifyReceipt returns the leaf hash of a record that the log of the pinned key has committed to.
func verifyReceipt(receipt auditReceipt, vkey string) []byte {
	size, root := openCheckpoint(receipt.checkpoint, vkey)
	leaf := sha256.Sum256(append([]byte{0}, receipt.leaf...))
	found, sound := rootFromPath(leaf[:], receipt.index, size, receipt.proof)
	demand(sound && bytes.Equal(found, root), "INCLUSION_INVALID", "the record is not in the log")
	return leaf[:]
}

func openCheckpoint(note, vkey string) (size uint64, root []byte) {
	const code = "CHECKPOINT_INVALID"
	parts := strings.SplitN(vkey, "+", 3)
	demand(len(parts) == 3, code, "malformed verifier key")
	name := parts[0]
	id, _ := hex.DecodeString(parts[1])
	key, err := base64.StdEncoding.Strict().DecodeString(parts[2])
	demand(err == nil && len(key) == 33 && key[0] == 1, code, "not an Ed25519 verifier key")
	named := sha256.Sum256(append([]byte(name+"\n"), key...))
	demand(bytes.Equal(id, named[:4]), code, "the verifier key's id is not its own")

	end := strings.LastIndex(note, "\n\n")
	demand(end >= 0 && strings.HasSuffix(note, "\n"), code, "malformed note")
	text, signed := note[:end+1], false
	for _, line := range strings.Split(strings.TrimSuffix(note[end+2:], "\n"), "\n") {
		signer, encoded, found := strings.Cut(strings.TrimPrefix(line, "— "), " ")
		data, err := base64.StdEncoding.Strict().DecodeString(encoded)
		demand(found && strings.HasPrefix(line, "— ") && err == nil && len(data) > 4, code, "malformed signature line")
		if signer == name && bytes.Equal(data[:4], id) {
			demand(len(data) == 68 && ed25519.Verify(key[1:], []byte(text), data[4:]), code, "a signature does not hold")
			signed = true
		}
	}
	demand(signed, code, "not signed by the pinned key")

	lines := strings.Split(text, "\n")
	demand(len(lines) >= 4 && lines[0] == name, code, "the checkpoint is of another log")
	size, err = strconv.ParseUint(lines[1], 10, 63)
	demand(err == nil && strconv.FormatUint(size, 10) == lines[1], code, "malformed size")
	root, err = base64.StdEncoding.Strict().DecodeString(lines[2])
	demand(err == nil && len(root) == 32, code, "malformed root")
	return size, root
}

// decision is what a client knows by itself about the record that must have allowed its session.
type decision struct {
	tenant, requestID, session, model, minimumTier string
	policyDigest                                   []byte
}

// checkDecision returns the tier that the record allows.
func checkDecision(leaf []byte, wanted decision) string {
	f := parseFields(leaf, maxLeaf, "RECORD_INVALID")
	f.integer("v", 1, 1)
	cause := f.nested("cause")
	holds := f.text("action") == "decision" && f.text("decision") == "allow" && f.text("tenant") == wanted.tenant &&
		f.text("session") == wanted.session && f.text("model") == wanted.model &&
		cause.text("request_id") == wanted.requestID && f.text("bundle") == hex.EncodeToString(wanted.policyDigest)
	demand(holds, f.code, "the record is of something else")
	tier := f.oneOf("tier", tiers...)
	demand(tierOf(tier) >= tierOf(wanted.minimumTier), "DOWNGRADED", "a weaker tier was decided than asked for")
	return tier
}
