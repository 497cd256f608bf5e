package main

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"slices"
	"time"
)

// Tenant roots and certificates of session keys: docs/protocol.md section 4, "Tenant root".

const (
	maxSessionCertificate     = 1024
	maxSessionCertificateLife = dayS
	certificateLife           = 3600
)

func fingerprintOf(key []byte) []byte {
	made := sha256.Sum256(key)
	return made[:]
}

func certificateMessage(certificate []byte) []byte {
	return append([]byte("bulkhead/v1 session key"), lp(certificate)...)
}

// certify returns the certificate of a session key by the tenant's root.
func certify(root ed25519.PrivateKey, tenant string, cnf []byte) []byte {
	now := time.Now().Unix()
	said := map[string]any{
		"version": int64(1), "tenant": tenant, "root": base64urlOf(root.Public().(ed25519.PublicKey)), "cnf": base64urlOf(cnf),
		"not_before": now - skewS, "not_after": now + certificateLife,
	}
	signature := ed25519.Sign(root, certificateMessage(canonical(said)))
	return canonical(map[string]any{"certificate": said, "signature": base64urlOf(signature)})
}

// verifyCertificate accepts a certificate by the root with that fingerprint for this tenant and session key, now.
func verifyCertificate(data, root []byte, tenant string, cnf []byte, now int64) {
	demand(len(data) > 0, "CERTIFICATE_MISSING", "no certificate") // 1
	outer := parseFields(data, maxSessionCertificate, "CERTIFICATE_INVALID")
	said := outer.take("certificate")
	signature := outer.binary("signature", 64, 64)
	outer.end()
	f := asFields(said, outer.code)
	f.integer("version", 1, 1)
	named, key, namedCnf := f.text("tenant"), f.binary("root", 32, 32), f.binary("cnf", 32, 32)
	notBefore, notAfter := f.integer("not_before", 0, maxInteger), f.integer("not_after", 0, maxInteger)
	f.end()
	life := notAfter - notBefore
	demand(0 < life && life <= maxSessionCertificateLife, f.code, "of another life than certificates have")
	demand(bytes.Equal(fingerprintOf(key), root), "CERTIFICATE_ROOT", "by another root") // 2
	signed := ed25519.Verify(key, certificateMessage(canonical(said)), signature)
	demand(signed, "CERTIFICATE_SIGNATURE", "not signed by that root")              // 3
	demand(named == tenant, "CERTIFICATE_TENANT", "for another tenant")             // 4
	demand(bytes.Equal(namedCnf, cnf), "CERTIFICATE_KEY", "of another session key") // 5
	demand(notBefore <= now+skewS, "CERTIFICATE_NOT_YET_VALID", "from the future")  // 6
	demand(now < notAfter, "CERTIFICATE_EXPIRED", "expired")
}

// checkTenantRoot accepts a descriptor that names one of the tenant's own roots, or none where it has none.
func checkTenantRoot(found descriptor, own [][]byte) {
	if len(own) > 0 {
		same := func(root []byte) bool { return bytes.Equal(root, found.tenantRoot) }
		known := found.tenantRoot != nil && slices.ContainsFunc(own, same)
		demand(known, "TENANT_ROOT_MISMATCH", "the worker takes session keys of another root, or of none")
		return
	}
	demand(found.tenantRoot == nil, "TENANT_ROOT_REQUIRED", "the worker takes session keys of a root, and none is configured")
	demand(found.tier != "confidential", "TENANT_ROOT_REQUIRED", "tier confidential needs a tenant root")
}
