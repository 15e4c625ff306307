package planner

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	holdfast "github.com/holdfast-dr/holdfast"
	"github.com/holdfast-dr/holdfast/api"
	"github.com/holdfast-dr/holdfast/internal/job"
)

// What can be answered.
const (
	answerDone  = "done"
	answerFail  = "fail"
	answerRetry = "retry"
	answerSkip  = "skip"
)

// asking is the part of a task's state that a question to a person is in.
type asking struct {
	Question *question `json:"question,omitempty"` // that waits for an answer
	Asked    int       `json:"asked,omitempty"`    // questions so far
	Answered *answer   `json:"answered,omitempty"` // the last
}

type question struct {
	Number  int      `json:"number"`
	Text    string   `json:"text"`
	Answers []string `json:"answers"`
}

// answer is what Resume gave to the task.
type answer struct {
	Number int    `json:"number"` // of the question
	Answer string `json:"answer"`
	Note   string `json:"note,omitempty"`
	By     string `json:"by,omitempty"`
}

// ask lays the run aside until somebody answers. State is the task's, with the
// question in it.
func (r *run) ask(ctx context.Context, state any, a *asking, text string, answers ...string) error {
	a.Asked++
	a.Question = &question{Number: a.Asked, Text: text, Answers: answers}
	if err := r.SaveState(ctx, state); err != nil {
		return err
	}
	r.Log("waiting for an answer (" + strings.Join(answers, ", ") + "): " + text)
	return job.Suspend(text)
}

// answered takes the answer to the question that the task has asked, if there is
// one; a question without an answer is asked again.
func (r *run) answered(a *asking) (answer, error) {
	if a.Question == nil {
		return answer{}, nil
	}
	var given answer
	if _, err := r.Answer(&given); err != nil {
		return given, err
	}
	if given.Number != a.Question.Number {
		return answer{}, job.Suspend(a.Question.Text) // the server was stopped between the two
	}
	a.Question, a.Answered = nil, &given
	said := "answered " + given.Answer
	if given.By != "" {
		said += " by " + given.By
	}
	if given.Note != "" {
		said += ": " + given.Note
	}
	r.Log(said)
	return given, nil
}

// AnswerJob answers what a run asks. By is who answers.
func (p *Planner) AnswerJob(ctx context.Context, id, by string, a api.Answer) (api.Job, error) {
	refuse := func(kind holdfast.Kind, cause, hint string) (api.Job, error) {
		return api.Job{}, &holdfast.Error{Kind: kind, Op: "answer job", Thing: id, Cause: cause, Hint: hint}
	}
	j, err := p.opts.Engine.Get(ctx, id)
	if err != nil {
		_, err := p.opts.Items.GetJob(ctx, id) // says it in the domain's words
		return api.Job{}, err
	}
	t := j.CurrentTask()
	if j.State != job.Suspended || t == nil {
		return refuse(holdfast.KindNotAllowed, "it asks nothing: it is "+string(j.State), "See holdfast job show "+id)
	}
	var st struct{ asking }
	if len(t.Saved) > 0 {
		if err := json.Unmarshal(t.Saved, &st); err != nil {
			return api.Job{}, fmt.Errorf("decode state of task %s: %w", t.Name, err)
		}
	}
	if st.Question == nil {
		return refuse(holdfast.KindInternal, "its question was not recorded", "Cancel it")
	}
	if !slices.Contains(st.Question.Answers, a.Answer) {
		return refuse(holdfast.KindInvalid, fmt.Sprintf("%q is no answer to %q", a.Answer, st.Question.Text), "Answer one of "+strings.Join(st.Question.Answers, ", "))
	}
	_, err = p.opts.Engine.Resume(ctx, id, answer{Number: st.Question.Number, Answer: a.Answer, Note: a.Note, By: by})
	if err != nil {
		return refuse(holdfast.KindConflict, "somebody else was quicker", "Look at the run again")
	}
	return p.opts.Items.GetJob(ctx, id)
}
