package main

import (
	"strings"
	"testing"
)

func TestFollowCountsTestsAndShowsFailures(t *testing.T) {
	t.Parallel()
	in := strings.Join([]string{
		`{"Action":"run","Package":"p","Test":"TestA"}`,
		`{"Action":"output","Package":"p","Test":"TestA","Output":"quiet\n"}`,
		`{"Action":"pass","Package":"p","Test":"TestA"}`,
		`{"Action":"output","Package":"p","Test":"TestB","Output":"loud\n"}`,
		`{"Action":"fail","Package":"p","Test":"TestB"}`,
		`{"Action":"output","Package":"p","Test":"TestC","Output":"why not\n"}`,
		`{"Action":"skip","Package":"p","Test":"TestC"}`,
		`# compiler`,
		`{"Action":"output","Package":"p","Output":"FAIL\tp\t1s\n"}`,
		`{"Action":"fail","Package":"p"}`,
	}, "\n")
	var out strings.Builder
	got, err := follow(strings.NewReader(in), &out)
	if err != nil {
		t.Fatal(err)
	}
	if got.passed != 1 || got.failed != 1 || got.skipped != 1 || len(got.reasons) != 1 {
		t.Errorf("counted %+v, want one of each", got)
	}
	if want := "loud\n# compiler\nFAIL\tp\t1s\n"; out.String() != want {
		t.Errorf("printed %q, want %q", out.String(), want)
	}
}
