package main

import (
	"bytes"
	"crypto/sha256"
	"slices"
)

// Usage in the log, held against kept receipts: docs/protocol.md section 7, "Receipts in the log".

const maxUsageBatch = 1024

// keptReceipt is what counts of a receipt that the tenant keeps, or of a total in its place.
type keptReceipt struct {
	session, partition         string
	number, prompt, completion int64
	digest                     []byte
	strict                     bool // of a ticket with strict padding: told in a total only
}

// readKept verifies a receipt by the worker's receipt key.
func readKept(signed, key []byte, padding string) keptReceipt {
	receipt, signature := readSigned(signed)
	demand(receiptSigned(receipt, signature, key), "SIGNATURE_INVALID", "not signed by the worker's receipt key")
	f := parseFields(receipt, maxReceipt, "RECEIPT_INVALID")
	usage, digest := f.nested("usage"), sha256.Sum256(signed)
	return keptReceipt{f.text("session"), f.text("partition"), f.integer("number", 1, maxInteger),
		usage.integer("prompt_tokens", 0, 1<<31-1), usage.integer("completion_tokens", 0, 1<<31-1), digest[:], padding == "strict"}
}

// usageBatch is what a record of action `receipts` says; its place in the log is verified elsewhere.
type usageBatch struct {
	session, partition               string
	first, count, prompt, completion int64
	root                             []byte
}

func readBatch(leaf []byte) usageBatch {
	f := parseFields(leaf, maxLeaf, "RECORD_INVALID")
	f.integer("v", 1, 1)
	demand(f.text("action") == "receipts", f.code, "the record is of something else")
	data := f.nested("data")
	made := usageBatch{f.text("session"), f.text("partition"), data.integer("first", 1, maxInteger),
		data.integer("count", 1, maxUsageBatch), data.integer("prompt_tokens", 0, maxInteger),
		data.integer("completion_tokens", 0, maxInteger), data.digest("root")}
	data.boolean("final")
	data.end()
	return made
}

// totalOf returns the total under a number of strict receipts of one session and partition.
func totalOf(number int64, receipts []keptReceipt) keptReceipt {
	made := keptReceipt{session: receipts[0].session, partition: receipts[0].partition, number: number}
	for _, receipt := range receipts {
		made.prompt += receipt.prompt
		made.completion += receipt.completion
	}
	made.digest = totalDigest(canonical(map[string]any{
		"version": int64(1), "session": made.session, "partition": made.partition, "number": number,
		"receipts": int64(len(receipts)), "prompt_tokens": made.prompt, "completion_tokens": made.completion,
	}))
	return made
}

func totalDigest(said []byte) []byte {
	made := sha256.Sum256(append([]byte("bulkhead/v1 session usage"), said...))
	return made[:]
}

func receiptsRoot(covered []keptReceipt) []byte {
	if len(covered) == 1 {
		leaf := sha256.Sum256(append([]byte{0}, covered[0].digest...))
		return leaf[:]
	}
	split := 1 // RFC 6962 section 2.1: the largest power of two below the size
	for split*2 < len(covered) {
		split *= 2
	}
	return treeNode(receiptsRoot(covered[:split]), receiptsRoot(covered[split:]))
}

type usageReport struct {
	prompt, completion int64
	unrecorded, untold []int64
}

// checkUsage accepts records of one session and partition that state exactly what the receipts show.
func checkUsage(batches []usageBatch, kept []keptReceipt) usageReport {
	const code = "USAGE_UNPROVEN"
	byNumber := map[int64]keptReceipt{}
	for _, receipt := range kept {
		byNumber[receipt.number] = receipt
	}
	recorded, told := map[int64]bool{}, map[int64]bool{}
	batches = slices.SortedFunc(slices.Values(batches), func(a, b usageBatch) int { return int(a.first - b.first) })
	var found usageReport
	for _, batch := range batches {
		var covered []keptReceipt
		var prompt, completion int64
		for number := batch.first; number < batch.first+batch.count; number++ {
			demand(!recorded[number], code, "number %d stands under two records", number)
			recorded[number] = true
			item, held := byNumber[number]
			if !held {
				var summed []keptReceipt
				for _, receipt := range kept {
					if receipt.strict && receipt.number < number && !told[receipt.number] {
						told[receipt.number] = true
						summed = append(summed, receipt)
					}
				}
				demand(len(summed) > 0, code, "nobody holds receipt %d", number)
				item = totalOf(number, summed)
			}
			same := item.session == batch.session && item.partition == batch.partition
			demand(same, code, "the record is of receipts that nobody holds")
			covered = append(covered, item)
			if !item.strict {
				prompt, completion = prompt+item.prompt, completion+item.completion
			}
		}
		demand(bytes.Equal(receiptsRoot(covered), batch.root), code, "the record covers other receipts, or another total")
		demand(prompt == batch.prompt && completion == batch.completion, code, "the record states other usage")
		found.prompt, found.completion = found.prompt+prompt, found.completion+completion
	}
	for _, receipt := range kept {
		switch {
		case !recorded[receipt.number]:
			found.unrecorded = append(found.unrecorded, receipt.number)
		case receipt.strict && !told[receipt.number]:
			found.untold = append(found.untold, receipt.number)
		}
	}
	return found
}
