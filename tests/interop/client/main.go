// Command bulkhead-interop speaks the sealed session protocol as docs/protocol.md specifies it, with Go's standard
// library alone: proof that the page suffices.
//
//	bulkhead-interop vectors DIRECTORY      check every vector in tests/vectors/protocol
//	bulkhead-interop ask < SETTINGS.json    open a session, verify its worker, ask, check the receipt
//
// Both print JSON; exit status 1 means that something did not hold.
package main

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"time"
)

const deadline = 2 * time.Minute

func base64urlOf(data []byte) string { return base64.RawURLEncoding.EncodeToString(data) }

func main() {
	var result any
	sound := true
	ended := attempt(func() {
		switch {
		case len(os.Args) == 3 && os.Args[1] == "vectors":
			checked := checkVectors(os.Args[2])
			sound = len(checked.failures) == 0
			result = map[string]any{"checked": checked.checked, "failures": checked.failures}
		case len(os.Args) == 2 && os.Args[1] == "ask":
			configured := settings{}
			err := json.NewDecoder(os.Stdin).Decode(&configured)
			demand(err == nil, "CONFIG", "settings: %v", err)
			ctx, cancel := context.WithTimeout(context.Background(), deadline)
			defer cancel()
			result = ask(ctx, configured)
		default:
			fmt.Fprintln(os.Stderr, "usage: bulkhead-interop vectors DIRECTORY | bulkhead-interop ask < SETTINGS.json")
			os.Exit(2)
		}
	})
	if ended != nil {
		sound, result = false, map[string]any{"code": ended.code, "message": ended.text}
	}
	json.NewEncoder(os.Stdout).Encode(result)
	if !sound {
		os.Exit(1)
	}
}
