// Package jobtest has what tests of jobs need: an in-memory job.Store that can
// be made to fail, and the suite that every job.Store must pass. Only tests
// import it.
package jobtest

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"sync"

	"github.com/holdfast-dr/holdfast/internal/job"
)

// Store keeps jobs in memory. Safe for concurrent use.
type Store struct {
	// Fail, if it is not nil, is asked before each operation ("create",
	// "update", "get", "list"); its error is the operation's.
	Fail func(op string) error
	// FailAfter is asked after the operation was done: its error says that it
	// failed although it was.
	FailAfter func(op string) error

	mu   sync.Mutex
	jobs map[string][]byte // encoded, so that nobody shares memory with it
}

var _ job.Store = (*Store)(nil)

// NewStore returns an empty store.
func NewStore() *Store { return &Store{jobs: map[string][]byte{}} }

func (s *Store) around(op string, f func() error) error {
	if s.Fail != nil {
		if err := s.Fail(op); err != nil {
			return err
		}
	}
	s.mu.Lock()
	err := f()
	s.mu.Unlock()
	if err == nil && s.FailAfter != nil {
		err = s.FailAfter(op)
	}
	return err
}

func (s *Store) all() ([]job.Job, error) {
	var all []job.Job
	for _, data := range s.jobs {
		var j job.Job
		if err := json.Unmarshal(data, &j); err != nil {
			return nil, err
		}
		all = append(all, j)
	}
	return all, nil
}

// CreateJob adds a job.
func (s *Store) CreateJob(_ context.Context, j job.Job) error {
	return s.around("create", func() error {
		if _, taken := s.jobs[j.ID]; taken {
			return job.ErrConflict
		}
		all, err := s.all()
		if err != nil {
			return err
		}
		for _, other := range all {
			if j.Subject != "" && other.Subject == j.Subject && !other.State.Ended() && !j.State.Ended() {
				return job.ErrBusy
			}
		}
		data, err := json.Marshal(j)
		s.jobs[j.ID] = data
		return err
	})
}

// UpdateJob replaces a job.
func (s *Store) UpdateJob(_ context.Context, j job.Job) error {
	return s.around("update", func() error {
		old, err := s.get(j.ID)
		if err != nil {
			return err
		}
		if old.Version != j.Version-1 {
			return fmt.Errorf("job %s: stored version is %d, not %d: %w", j.ID, old.Version, j.Version-1, job.ErrConflict)
		}
		data, err := json.Marshal(j)
		s.jobs[j.ID] = data
		return err
	})
}

func (s *Store) get(id string) (job.Job, error) {
	var j job.Job
	data, ok := s.jobs[id]
	if !ok {
		return j, job.ErrNotFound
	}
	return j, json.Unmarshal(data, &j)
}

// GetJob returns a job.
func (s *Store) GetJob(_ context.Context, id string) (j job.Job, err error) {
	err = s.around("get", func() error {
		j, err = s.get(id)
		return err
	})
	return j, err
}

// ListJobs returns jobs, the newest first.
func (s *Store) ListJobs(_ context.Context, f job.Filter) (jobs []job.Job, err error) {
	err = s.around("list", func() error {
		all, err := s.all()
		if err != nil {
			return err
		}
		jobs = slices.DeleteFunc(all, func(j job.Job) bool { return !f.Matches(j) })
		slices.SortFunc(jobs, func(a, b job.Job) int {
			return cmp.Or(b.CreatedAt.Compare(a.CreatedAt), cmp.Compare(b.ID, a.ID))
		})
		if f.Limit > 0 && len(jobs) > f.Limit {
			jobs = jobs[:f.Limit]
		}
		return nil
	})
	return jobs, err
}
