package main

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/binary"
	"slices"
)

// Key schedule, chunks and padding: docs/protocol.md section 5.

const (
	toServer  = 1
	toClient  = 2
	maxChunk  = 65_536
	maxRecord = maxChunk - 4
	maxChunks = 1 << 20
	tagSize   = 16
	near      = 64
)

var buckets = []int{256, 1536, 4096, 16_384, maxChunk}

func derive(secret, salt []byte, info string, size int) []byte {
	key, err := hkdf.Key(sha256.New, secret, salt, info, size)
	if err != nil {
		panic(err)
	}
	return key
}

func requestKey(secret, transcript []byte) []byte { return derive(secret, transcript, "c2s", 44) }
func commitKey(secret, transcript []byte) []byte  { return derive(secret, transcript, "commit", 32) }

func responseKey(secret, transcript, requestDigest, workerRandom []byte) []byte {
	salt := sha256.Sum256(slices.Concat(transcript, requestDigest, workerRandom))
	return derive(secret, salt[:], "s2c", 44)
}

func digestOfChunks(chunks [][]byte) []byte {
	digest := sha256.Sum256(lp(chunks...))
	return digest[:]
}

func padded(size int, mode string, direction byte) int {
	sizes := buckets
	switch {
	case mode == "off":
		return size
	case mode == "strict" && direction == toServer:
		sizes = buckets[3:]
	case mode == "strict":
		sizes = buckets[1:]
	}
	place, _ := slices.BinarySearch(sizes, size)
	return sizes[place]
}

func pad(record []byte, mode string, direction byte) []byte {
	plaintext := make([]byte, padded(4+len(record), mode, direction))
	binary.BigEndian.PutUint32(plaintext, uint32(len(record)))
	copy(plaintext[4:], record)
	return plaintext
}

func unpad(plaintext []byte, mode string, direction byte) []byte {
	const code = "SEAL_BROKEN"
	demand(len(plaintext) >= 4, code, "no length")
	size := int64(binary.BigEndian.Uint32(plaintext)) + 4
	demand(size <= int64(len(plaintext)), code, "a length beyond the plaintext")
	end := int(size)
	filling := slices.ContainsFunc(plaintext[end:], func(b byte) bool { return b != 0 })
	demand(!filling && len(plaintext) == padded(end, mode, direction), code, "the padding is not the session's")
	return plaintext[4:end]
}

// stream seals or opens one direction of one request.
type stream struct {
	aead      cipher.AEAD
	base      []byte
	direction byte
	counter   uint32
	closed    bool
}

func newStream(material []byte, direction byte) *stream {
	block, err := aes.NewCipher(material[:32])
	if err != nil {
		panic(err)
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		panic(err)
	}
	return &stream{aead: aead, base: material[32:44], direction: direction}
}

func (s *stream) at(counter uint32, final byte) (nonce, aad []byte) {
	nonce = slices.Clone(s.base)
	for place, octet := range binary.BigEndian.AppendUint32(nil, counter) {
		nonce[8+place] ^= octet
	}
	return nonce, append(binary.BigEndian.AppendUint32([]byte{s.direction}, counter), final)
}

func (s *stream) seal(plaintext []byte, final bool) []byte {
	flag := byte(0)
	if final {
		flag = 1
	}
	nonce, aad := s.at(s.counter, flag)
	s.counter++
	return s.aead.Seal([]byte{flag}, nonce, plaintext, aad)
}

func (s *stream) open(chunk []byte) (plaintext []byte, final bool) {
	const code = "SEAL_BROKEN"
	closed := s.closed
	s.closed = true
	demand(!closed && s.counter < maxChunks, code, "a chunk after the end")
	whole := 1+tagSize <= len(chunk) && len(chunk) <= 1+maxChunk+tagSize && chunk[0] <= 1
	demand(whole, code, "malformed chunk")
	plaintext, err := s.openAt(s.counter, chunk)
	if err != nil {
		s.explain(chunk)
	}
	final = chunk[0] == 1
	s.counter, s.closed = s.counter+1, final
	return plaintext, final
}

func (s *stream) openAt(counter uint32, chunk []byte) ([]byte, error) {
	nonce, aad := s.at(counter, chunk[0])
	return s.aead.Open(nil, nonce, chunk[1:], aad)
}

func (s *stream) explain(chunk []byte) {
	for place := max(0, int64(s.counter)-near); place <= int64(s.counter)+near; place++ {
		if _, err := s.openAt(uint32(place), chunk); err == nil {
			demand(place > int64(s.counter), "CHUNK_REPEATED", "an earlier chunk came again")
			refuse("CHUNK_REORDERED", "a later chunk came first")
		}
	}
	refuse("SEAL_BROKEN", "altered, or of another stream")
}
