package main

import "fmt"

// refusal is the one error of this client: a stable code (docs/protocol.md section 12) and a sentence. It is raised
// with refuse and unwinds to attempt, as a parser's errors do in encoding/json; nothing else panics here on purpose.
type refusal struct{ code, text string }

func (r refusal) Error() string { return r.code + ": " + r.text }

func refuse(code, format string, values ...any) {
	panic(refusal{code, fmt.Sprintf(format, values...)})
}

func demand(holds bool, code, format string, values ...any) {
	if !holds {
		refuse(code, format, values...)
	}
}

// attempt returns the refusal that work ended with, nil if it did not.
func attempt(work func()) (ended *refusal) {
	defer func() {
		if raised := recover(); raised != nil {
			found, ours := raised.(refusal)
			if !ours {
				panic(raised)
			}
			ended = &found
		}
	}()
	work()
	return nil
}
