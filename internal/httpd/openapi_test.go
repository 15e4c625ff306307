package httpd_test

import (
	"bytes"
	"flag"
	"os"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write golden files anew")

// The document is part of the contract: a change of it is a change for clients,
// and shows in review.
func TestOpenAPIGolden(t *testing.T) {
	t.Parallel()
	const golden = "../../api/openapi.json"
	got := newBench(t).server.OpenAPI()
	if *update {
		if err := os.WriteFile(golden, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("the interface is not as %s says; if that is meant, go test ./internal/httpd -run OpenAPI -update", golden)
	}
	for _, unwanted := range []string{"ErrorModel", "$schema", `"null"`, "application/cbor"} {
		if strings.Contains(string(got), unwanted) {
			t.Errorf("the document contains %s", unwanted)
		}
	}
}
