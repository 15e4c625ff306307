package api

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// Of event streams: how long the client waits before it connects again, how
// often it does so without hearing anything, and how long it hears nothing, not
// even a heartbeat, before it takes the connection for dead.
const (
	retryFirst   = 250 * time.Millisecond
	retryLongest = 5 * time.Second
	retryTimes   = 10
	silence      = 60 * time.Second
	maxLine      = 8 << 20
)

// errStop ends a stream from within, when what was watched has ended.
var errStop = errors.New("stop")

// WatchJob calls each with a job as it stands and then after changes, until it
// has ended, and returns it as it ended. If the connection breaks it connects
// again, and gives up after some ten attempts in a row. If each returns an
// error, that ends it.
func (c *Client) WatchJob(ctx context.Context, id string, each func(Job) error) (Job, error) {
	var last Job
	err := c.follow(ctx, "/v1/jobs/"+segment(id)+"/events", 0, func(_ uint64, data []byte) error {
		var job Job
		if err := json.Unmarshal(data, &job); err != nil {
			return fmt.Errorf("decode job: %w", err)
		}
		last = job
		if err := each(job); err != nil {
			return err
		}
		if job.Ended() {
			return errStop
		}
		return nil
	})
	return last, err
}

// Events calls each with the events after the one whose id is given, or from
// now on if that is 0, until ctx ends, whose error it then returns, or each
// returns an error. If the connection breaks it goes on where it stopped.
func (c *Client) Events(ctx context.Context, after uint64, each func(Event) error) error {
	return c.follow(ctx, "/v1/events", after, func(_ uint64, data []byte) error {
		var event Event
		if err := json.Unmarshal(data, &event); err != nil {
			return fmt.Errorf("decode event: %w", err)
		}
		return each(event)
	})
}

// callError is an error of the caller's function, which is not retried.
type callError struct{ error }

// follow reads a stream and connects again when it breaks.
func (c *Client) follow(ctx context.Context, path string, after uint64, each func(id uint64, data []byte) error) error {
	wait, failures := retryFirst, 0
	for {
		heard := false
		err := c.read(ctx, path, after, func(id uint64, data []byte) error {
			heard = true
			if id != 0 {
				after = id
			}
			if err := each(id, data); err != nil {
				return callError{err}
			}
			return nil
		})
		var called callError
		var problem *Problem
		switch {
		case errors.As(err, &called):
			if errors.Is(called.error, errStop) {
				return nil
			}
			return called.error
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.As(err, &problem) && problem.Status != http.StatusServiceUnavailable && problem.Status != http.StatusBadGateway:
			return problem
		}
		if heard {
			wait, failures = retryFirst, 0
		}
		if failures++; failures > retryTimes {
			return fmt.Errorf("the connection broke and did not come back: %w", err)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(wait):
		}
		wait = min(2*wait, retryLongest)
	}
}

// read reads one connection's events until it breaks. It never returns nil.
func (c *Client) read(ctx context.Context, path string, after uint64, each func(id uint64, data []byte) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	query := url.Values{}
	if after != 0 {
		query.Set("after", strconv.FormatUint(after, 10))
	}
	r, err := c.request(ctx, http.MethodGet, withQuery(path, query), nil)
	if err != nil {
		return err
	}
	r.Header.Set("Accept", "text/event-stream, application/problem+json")
	// A dead connection says nothing at all: the heartbeat's absence tells.
	watchdog := time.AfterFunc(silence, cancel)
	defer watchdog.Stop()
	answer, err := c.http.Do(r)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	if err := refused(answer); err != nil {
		return err
	}
	lines := bufio.NewScanner(answer.Body)
	lines.Buffer(make([]byte, 0, 64<<10), maxLine)
	var id uint64
	var data []byte
	for lines.Scan() {
		watchdog.Reset(silence)
		line := lines.Text()
		if line == "" {
			if data != nil {
				if err := each(id, data); err != nil {
					return err
				}
			}
			id, data = 0, nil
			continue
		}
		field, value, _ := strings.Cut(line, ":")
		value = strings.TrimPrefix(value, " ")
		switch field {
		case "id":
			if id, err = strconv.ParseUint(value, 10, 64); err != nil {
				return fmt.Errorf("read event: id %q is not a number", value)
			}
		case "data":
			if data != nil {
				data = append(data, '\n')
			}
			data = append(data, value...)
		}
	}
	if err := lines.Err(); err != nil {
		return fmt.Errorf("read events: %w", err)
	}
	return fmt.Errorf("read events: %w", io.ErrUnexpectedEOF)
}
