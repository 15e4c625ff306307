package store_test

import (
	"fmt"
	"path/filepath"
	"testing"

	"github.com/holdfast-dr/holdfast/internal/job"
	"github.com/holdfast-dr/holdfast/internal/store"
)

// BenchmarkUpdateJob is what one durable record of a job costs.
func BenchmarkUpdateJob(b *testing.B) {
	s, err := store.Open(b.Context(), filepath.Join(b.TempDir(), "holdfast.db"))
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	j := job.Job{ID: "j", Kind: "k", State: job.InProgress, CreatedAt: t0, Version: 1}
	for i := range 8 {
		j.Tasks = append(j.Tasks, job.TaskRecord{Name: fmt.Sprint("task", i), State: job.NotStarted})
	}
	if err := s.CreateJob(b.Context(), j); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		j.Version++
		if err := s.UpdateJob(b.Context(), j); err != nil {
			b.Fatal(err)
		}
	}
}
