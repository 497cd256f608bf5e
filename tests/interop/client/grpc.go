package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
)

// gRPC over the standard library's HTTP/2, and protobuf's wire format: docs/protocol.md section 11.

const maxMessage = 4 << 20

// message is a protobuf message: its fields' values by number, integers as varints, everything else as bytes.
type message map[uint64][][]byte

func bytesField(number uint64, value []byte) []byte {
	if len(value) == 0 {
		return nil
	}
	return append(binary.AppendUvarint(binary.AppendUvarint(nil, number<<3|2), uint64(len(value))), value...)
}

func textField(number uint64, value string) []byte { return bytesField(number, []byte(value)) }

func uintField(number, value uint64) []byte {
	if value == 0 {
		return nil
	}
	return binary.AppendUvarint(binary.AppendUvarint(nil, number<<3), value)
}

func parseMessage(data []byte) message {
	const code = "MALFORMED_REQUEST"
	found := message{}
	varint := func() uint64 {
		value, size := binary.Uvarint(data)
		demand(size > 0, code, "malformed protobuf")
		data = data[size:]
		return value
	}
	take := func(size uint64) []byte {
		demand(size <= uint64(len(data)), code, "malformed protobuf")
		piece := data[:size]
		data = data[size:]
		return piece
	}
	for len(data) > 0 {
		tag := varint()
		var value []byte
		switch tag & 7 {
		case 0:
			value = binary.AppendUvarint(nil, varint())
		case 1:
			value = take(8)
		case 2:
			value = take(varint())
		case 5:
			value = take(4)
		default:
			refuse(code, "malformed protobuf")
		}
		found[tag>>3] = append(found[tag>>3], value)
	}
	return found
}

func (m message) bytes(number uint64) []byte {
	if values := m[number]; len(values) > 0 {
		return values[len(values)-1]
	}
	return nil
}

func (m message) text(number uint64) string    { return string(m.bytes(number)) }
func (m message) nested(number uint64) message { return parseMessage(m.bytes(number)) }
func (m message) integer(number uint64) uint64 {
	value, _ := binary.Uvarint(m.bytes(number))
	return value
}

// peer is one TLS connection to a gRPC server.
type peer struct {
	client    *http.Client
	authority string
	headers   http.Header
}

// dial prepares a connection to address that must show a certificate for authority under the roots.
func dial(address, authority string, roots *x509.CertPool, headers http.Header) *peer {
	transport := &http.Transport{
		TLSClientConfig:    &tls.Config{RootCAs: roots, ServerName: authority, MinVersion: tls.VersionTLS12},
		ForceAttemptHTTP2:  true,
		DisableCompression: true,
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, network, address)
		},
	}
	return &peer{&http.Client{Transport: transport}, authority, headers}
}

// call sends one message and gives each message of the reply to read, until the stream ends with status OK.
func (p *peer) call(ctx context.Context, method string, sent []byte, read func(message)) {
	const code = "CONNECTION_FAILED"
	body := append(append([]byte{0}, u32(len(sent))...), sent...)
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://"+p.authority+method, bytes.NewReader(body))
	demand(err == nil, code, "%v", err)
	for name, values := range p.headers {
		request.Header[name] = values
	}
	request.Header.Set("Content-Type", "application/grpc")
	request.Header.Set("Te", "trailers")
	reply, err := p.client.Do(request)
	demand(err == nil, code, "%v", err)
	defer reply.Body.Close()
	demand(reply.StatusCode == http.StatusOK && reply.ProtoMajor == 2, code, "no gRPC: %s", reply.Status)
	for {
		header := make([]byte, 5)
		if _, err = io.ReadFull(reply.Body, header); err != nil {
			break
		}
		size := binary.BigEndian.Uint32(header[1:])
		demand(header[0] == 0 && size <= maxMessage, "MALFORMED_REQUEST", "compressed, or too large")
		received := make([]byte, size)
		if _, err = io.ReadFull(reply.Body, received); err != nil {
			break
		}
		read(parseMessage(received))
	}
	demand(err == io.EOF, code, "the stream broke: %v", err)
	status := reply.Trailer
	if status.Get("Grpc-Status") == "" {
		status = reply.Header // a reply without messages has its trailers in its header
	}
	if status.Get("Grpc-Status") != "0" {
		refuse(statusCode(status), "%s", status.Get("Grpc-Message"))
	}
}

// statusCode returns the code that an error status carries, or names the status where there is none.
func statusCode(trailers http.Header) string {
	encoded := strings.TrimRight(trailers.Get("Grpc-Status-Details-Bin"), "=")
	details, err := base64.RawStdEncoding.DecodeString(encoded)
	if err == nil && len(details) > 0 {
		if reason := parseMessage(details).nested(3).nested(2).text(1); reason != "" {
			return reason
		}
	}
	number, _ := strconv.Atoi(trailers.Get("Grpc-Status"))
	return fmt.Sprintf("GRPC_STATUS_%d", number)
}
