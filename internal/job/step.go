package job

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

const (
	maxLogLines   = 200
	maxLogText    = 4096
	eventInterval = 200 * time.Millisecond // between progress events of a task
)

// Step is what a task has of its job while it runs. Its methods are safe for
// concurrent use by what the task starts, until the task returns.
type Step struct {
	engine *Engine
	live   *live
	task   string
	// record finds the task's own record in its job.
	record func(*Job) *TaskRecord
}

// JobID returns the id of the job: the same at each attempt, so that names can
// be derived from it.
func (s *Step) JobID() string { return s.live.snapshot().ID }

// Subject returns what the job works on.
func (s *Step) Subject() string { return s.live.snapshot().Subject }

// Job returns the job as it is now.
func (s *Step) Job() Job { return s.live.snapshot() }

// Attempt returns how often this task was begun, this time included: above 1
// it may find traces of itself.
func (s *Step) Attempt() int {
	j := s.live.snapshot()
	return s.record(&j).Attempts
}

// Ending returns the outcome of the job; nil but in the kind's Finish.
func (s *Step) Ending() *Ending { return s.live.snapshot().Ending }

// Input decodes what the job was submitted with.
func (s *Step) Input(v any) error {
	return decode("input", s.live.snapshot().Input, v)
}

// State decodes what this task saved in this or an earlier attempt. It leaves
// v as it is if nothing was saved.
func (s *Step) State(v any) error {
	j := s.live.snapshot()
	return decode("state of task "+s.task, s.record(&j).Saved, v)
}

// SaveState records v as this task's state. It is durable when it returns nil:
// save what is about to be done before doing it. A task whose SaveState failed
// returns that error and is run again once the store works.
func (s *Step) SaveState(ctx context.Context, v any) error {
	return s.save(ctx, "state of task "+s.task, v, func(j *Job, data json.RawMessage) { s.record(j).Saved = data })
}

// JobState decodes what any task of the job has saved with SaveJobState. It
// leaves v as it is if nothing was saved.
func (s *Step) JobState(v any) error {
	return decode("state of job", s.live.snapshot().Shared, v)
}

// SaveJobState records v as the state that all tasks of the job share, in
// place of what was there, like SaveState.
func (s *Step) SaveJobState(ctx context.Context, v any) error {
	return s.save(ctx, "state of job", v, func(j *Job, data json.RawMessage) { j.Shared = data })
}

// SetResult records v as what came of the job, like SaveState. It may be called
// again with more.
func (s *Step) SetResult(ctx context.Context, v any) error {
	return s.save(ctx, "result of job", v, func(j *Job, data json.RawMessage) { j.Result = data })
}

// Answer decodes what Resume gave to this task after it had suspended the job,
// and reports whether there is an answer.
func (s *Step) Answer(v any) (bool, error) {
	j := s.live.snapshot()
	raw := s.record(&j).Answer
	if raw == nil {
		return false, nil
	}
	return true, decode("answer to task "+s.task, raw, v)
}

// Warn notes in the job what was left undone though it goes on. It is recorded
// with the next record; the same text is noted once.
func (s *Step) Warn(text string) {
	s.live.change(func(j *Job) {
		if !slices.Contains(j.Warnings, text) {
			j.Warnings = append(j.Warnings, text)
		}
	})
	s.Log("warning: " + text)
}

// Progress says how far the task is, in a unit like "bytes"; total 0 means not
// known. It is cheap enough to be called for every block. Recorded with the
// next record, not by itself.
func (s *Step) Progress(done, total int64, unit string) {
	now := s.engine.opts.Now()
	s.live.mu.Lock()
	defer s.live.mu.Unlock()
	t := s.record(&s.live.job)
	t.Progress = s.live.meter.progress(now, done, total, unit)
	if since := now.Sub(s.live.told); since >= 0 && since < eventInterval && !(total > 0 && done >= total) {
		return
	}
	s.live.told = now
	s.engine.events.Publish(Event{Type: EventProgress, Time: now, Job: s.live.job.clone(), Task: s.task})
}

// Log notes something for people who look at the job. The last 200 lines of a
// task are kept, each cut at 4 KiB; recorded with the next record.
func (s *Step) Log(text string) {
	if len(text) > maxLogText {
		text = strings.ToValidUTF8(text[:maxLogText], "") + "…"
	}
	now := s.engine.opts.Now()
	s.live.mu.Lock()
	defer s.live.mu.Unlock()
	t := s.record(&s.live.job)
	if len(t.Log) >= maxLogLines {
		t.Log = slices.Clone(t.Log[len(t.Log)-maxLogLines+1:])
	}
	t.Log = append(slices.Clip(t.Log), LogLine{Time: now, Text: text})
	s.engine.events.Publish(Event{Type: EventLog, Time: now, Job: s.live.job.clone(), Task: s.task, Text: text})
}

func (s *Step) save(ctx context.Context, what string, v any, set func(*Job, json.RawMessage)) error {
	data, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode %s: %w", what, err)
	}
	err = s.engine.record(ctx, s.live, func(j *Job) error {
		set(j, data)
		return nil
	})
	if err != nil {
		return fmt.Errorf("save %s: %w", what, err)
	}
	return nil
}

func decode(what string, raw json.RawMessage, v any) error {
	if len(raw) == 0 {
		return nil
	}
	if err := json.Unmarshal(raw, v); err != nil {
		return fmt.Errorf("decode %s: %w", what, err)
	}
	return nil
}

// skipError ends a task as skipped.
type skipError struct{ reason string }

func (e *skipError) Error() string { return "skipped: " + e.reason }

// Skip returns an error with which a task ends itself as skipped: there is
// nothing to do, for this reason. The job goes on.
func Skip(reason string) error { return &skipError{reason} }

// IsSkip says whether an error is one of Skip.
func IsSkip(err error) bool {
	var skip *skipError
	return errors.As(err, &skip)
}

// suspendError lays a job aside.
type suspendError struct{ reason string }

func (e *suspendError) Error() string { return "suspended: " + e.reason }

// Suspend returns an error with which a task lays its job aside, until Resume
// is called with an answer; then the task is run again, and Step.Answer has
// it. No goroutine waits meanwhile, and a restart changes nothing. The subject
// stays busy.
func Suspend(waitingFor string) error { return &suspendError{waitingFor} }

// panicError is a task that panicked.
type panicError struct {
	value any
	stack string
}

func (e *panicError) Error() string { return fmt.Sprintf("task panicked: %v", e.value) }

// Describe says whose fault that is.
func (e *panicError) Describe() (code, cause, hint string) {
	return "internal", "a fault in Holdfast: " + fmt.Sprint(e.value), "Please report it with the log of this job"
}

var _ Describer = (*panicError)(nil)

// stopping reports whether err only says that the engine stops.
func stopping(ctx context.Context) bool {
	return errors.Is(context.Cause(ctx), ErrStopped)
}
