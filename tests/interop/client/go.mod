module bulkhead-interop

go 1.26
