package main

import (
	"bytes"
	"slices"
)

type usageCase struct {
	Name, Code         string
	Kept               []int
	Records            []string
	Prompt             int64 `json:"prompt_tokens"`
	Completion         int64 `json:"completion_tokens"`
	Unrecorded, Untold []int64
}

func (c *checker) totals() {
	var v struct {
		Session, Partition string
		ReceiptKey         string `json:"receipt_key"`
		Receipts           []struct{ Receipt, Padding string }
		Totals             []struct {
			Number int64
			Said   string
			Digest octets
		}
		Accepted, Refused []usageCase
	}
	c.load("totals", &v)
	key, _ := base64url(v.ReceiptKey)
	var all []keptReceipt
	for _, item := range v.Receipts {
		c.holds("totals: receipt", func() { all = append(all, readKept([]byte(item.Receipt), key, item.Padding)) })
	}
	ours := func(item keptReceipt) bool { return item.session == v.Session && item.partition == v.Partition }
	c.expect(len(all) == len(v.Receipts) && !slices.ContainsFunc(all, func(item keptReceipt) bool { return !ours(item) }),
		"totals: receipts of another session")
	var told int64
	for _, total := range v.Totals {
		var summed []keptReceipt
		for _, item := range all {
			if item.strict && told < item.number && item.number < total.Number {
				summed = append(summed, item)
			}
		}
		told = total.Number
		c.expect(bytes.Equal(totalDigest([]byte(total.Said)), total.Digest), "totals: digest of %d", total.Number)
		c.expect(len(summed) > 0 && bytes.Equal(totalOf(total.Number, summed).digest, total.Digest), "totals: %d", total.Number)
	}
	check := func(item usageCase) usageReport {
		var kept []keptReceipt
		for _, place := range item.Kept {
			kept = append(kept, all[place])
		}
		var batches []usageBatch
		for _, leaf := range item.Records {
			batches = append(batches, readBatch([]byte(leaf)))
		}
		return checkUsage(batches, kept)
	}
	for _, item := range v.Accepted {
		c.holds("totals: "+item.Name, func() {
			found := check(item)
			c.expect(found.prompt == item.Prompt && found.completion == item.Completion, "totals: %s: tokens", item.Name)
			same := slices.Equal(found.unrecorded, item.Unrecorded) && slices.Equal(found.untold, item.Untold)
			c.expect(same, "totals: %s: unrecorded %v, untold %v", item.Name, found.unrecorded, found.untold)
		})
	}
	for _, item := range v.Refused {
		c.refused(item.Code, "totals: "+item.Name, func() { check(item) })
	}
}
