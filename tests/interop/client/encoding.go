package main

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"io"
	"regexp"
	"slices"
	"strings"
	"unicode/utf16"
	"unicode/utf8"
)

// Notation of docs/protocol.md section 1: lp, canonical JSON, digests, base64url, identifiers.

const maxInteger = 1<<53 - 1

var (
	integerForm    = regexp.MustCompile(`^(?:0|-?[1-9][0-9]{0,15})$`)
	digestForm     = regexp.MustCompile(`^[0-9a-f]{64}$`)
	identifierForm = regexp.MustCompile(`^[0-7][0-9a-hjkmnp-tv-z]{25}$`)
)

func u32(value int) []byte    { return binary.BigEndian.AppendUint32(nil, uint32(value)) }
func u64(value uint64) []byte { return binary.BigEndian.AppendUint64(nil, value) }

func lp(fields ...[]byte) []byte {
	var joined []byte
	for _, field := range fields {
		joined = append(append(joined, u32(len(field))...), field...)
	}
	return joined
}

func isIdentifier(text, prefix string) bool {
	suffix, found := strings.CutPrefix(text, prefix+"_")
	return found && identifierForm.MatchString(suffix)
}

// canonical writes a value as RFC 8785. Numbers are json.Number, or what Go's encoder writes as ECMAScript does.
func canonical(value any) []byte {
	var out bytes.Buffer
	writeCanonical(&out, value)
	return out.Bytes()
}

func writeCanonical(out *bytes.Buffer, value any) {
	switch value := value.(type) {
	case string:
		writeText(out, value)
	case json.Number:
		if integerForm.MatchString(value.String()) {
			out.WriteString(value.String())
			return
		}
		real, _ := value.Float64()
		writeCanonical(out, real)
	case []any:
		out.WriteByte('[')
		for place, item := range value {
			if place > 0 {
				out.WriteByte(',')
			}
			writeCanonical(out, item)
		}
		out.WriteByte(']')
	case map[string]any:
		names := make([]string, 0, len(value))
		for name := range value {
			names = append(names, name)
		}
		slices.SortFunc(names, func(a, b string) int {
			return slices.Compare(utf16.Encode([]rune(a)), utf16.Encode([]rune(b)))
		})
		out.WriteByte('{')
		for place, name := range names {
			if place > 0 {
				out.WriteByte(',')
			}
			writeText(out, name)
			out.WriteByte(':')
			writeCanonical(out, value[name])
		}
		out.WriteByte('}')
	default: // null, booleans, numbers
		encoded, _ := json.Marshal(value)
		out.Write(encoded)
	}
}

func writeText(out *bytes.Buffer, text string) {
	const digits = "0123456789abcdef"
	short := map[rune]string{'"': `\"`, '\\': `\\`, '\b': `\b`, '\f': `\f`, '\n': `\n`, '\r': `\r`, '\t': `\t`}
	out.WriteByte('"')
	for _, char := range text {
		if escape, found := short[char]; found {
			out.WriteString(escape)
		} else if char < 0x20 {
			out.WriteString(`\u00`)
			out.WriteByte(digits[char>>4])
			out.WriteByte(digits[char&15])
		} else {
			out.WriteRune(char)
		}
	}
	out.WriteByte('"')
}

func parseJSON(data []byte) (any, bool) {
	decoder := json.NewDecoder(bytes.NewReader(data))
	decoder.UseNumber()
	var value any
	if decoder.Decode(&value) != nil {
		return nil, false
	}
	_, err := decoder.Token()
	return value, err == io.EOF
}

// fields takes typed fields out of a JSON object; end refuses what is left.
type fields struct {
	left map[string]any
	code string
}

// parseFields reads an object that is its own canonical encoding.
func parseFields(data []byte, limit int, code string) *fields {
	demand(len(data) <= limit, code, "longer than %d bytes", limit)
	value, whole := parseJSON(data)
	demand(whole && bytes.Equal(canonical(value), data), code, "not canonical JSON")
	return asFields(value, code)
}

func asFields(value any, code string) *fields {
	object, is := value.(map[string]any)
	demand(is, code, "not an object")
	left := make(map[string]any, len(object))
	for name, item := range object {
		left[name] = item
	}
	return &fields{left, code}
}

func (f *fields) end() {
	for name := range f.left {
		refuse(f.code, "unknown field %q", name)
	}
}

func (f *fields) take(name string) any {
	value, found := f.left[name]
	demand(found, f.code, "%s is missing", name)
	delete(f.left, name)
	return value
}

func (f *fields) nested(name string) *fields { return asFields(f.take(name), f.code) }

func (f *fields) textUpTo(name string, least, most int) string {
	text, is := f.take(name).(string)
	size := utf8.RuneCountInString(text)
	demand(is && least <= size && size <= most, f.code, "%s is no text of %d to %d characters", name, least, most)
	return text
}

func (f *fields) text(name string) string { return f.textUpTo(name, 1, 256) }

func (f *fields) oneOf(name string, known ...string) string {
	text := f.text(name)
	demand(slices.Contains(known, text), f.code, "%s is unknown", name)
	return text
}

func (f *fields) integer(name string, low, high int64) int64 {
	number, is := f.take(name).(json.Number)
	demand(is && integerForm.MatchString(number.String()), f.code, "%s is no integer", name)
	value, err := number.Int64()
	demand(err == nil && low <= value && value <= high, f.code, "%s is out of range", name)
	return value
}

func (f *fields) boolean(name string) bool {
	value, is := f.take(name).(bool)
	demand(is, f.code, "%s is no boolean", name)
	return value
}

func (f *fields) list(name string, least, most int) []any {
	items, is := f.take(name).([]any)
	demand(is && least <= len(items) && len(items) <= most, f.code, "%s is no list of %d to %d", name, least, most)
	return items
}

func (f *fields) asDigest(value any, name string) []byte {
	text, is := value.(string)
	demand(is && digestForm.MatchString(text), f.code, "%s is no digest", name)
	digest, _ := hex.DecodeString(text)
	return digest
}

func (f *fields) digest(name string) []byte { return f.asDigest(f.take(name), name) }

func (f *fields) digests(name string, least, most int) [][]byte {
	var found [][]byte
	for _, item := range f.list(name, least, most) {
		found = append(found, f.asDigest(item, name))
	}
	return found
}

// binary reads base64url; size -1 takes any up to limit.
func (f *fields) binary(name string, size, limit int) []byte {
	text, is := f.take(name).(string)
	demand(is, f.code, "%s is no text", name)
	data, canonical := base64url(text)
	demand(canonical && len(data) <= limit && (size < 0 || len(data) == size), f.code, "%s is no base64url", name)
	return data
}

func base64url(text string) ([]byte, bool) {
	data, err := base64.RawURLEncoding.Strict().DecodeString(text)
	return data, err == nil && !strings.ContainsAny(text, "\r\n")
}
