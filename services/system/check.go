package system

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/gantryd/gantry/internal/check"
	"github.com/gantryd/gantry/internal/sentence"
	systemv1 "github.com/gantryd/gantry/proto/gantry/system/v1"
)

const (
	// checkTime bounds one look of one check: a driver that hangs costs its own check only.
	checkTime = 30 * time.Second
	// lookAgain is the pause before a second look. The world moves while it is compared, so that
	// two accounts of it, read one after the other, differ for a moment now and then; what is
	// really wrong is wrong both times.
	lookAgain = 100 * time.Millisecond
)

// difference is one thing that a check reported.
type difference struct {
	detail string
	repair func(context.Context) error
}

// seen is what a look found, by subject, in the order found.
type seen struct {
	subjects []string
	found    map[string]difference
}

// Check runs all checks at once and calls report for every difference, in the order of the checks,
// repaired if that is asked for and possible. A check that could not be made is a difference too:
// nobody knows then.
func (s *Service) Check(ctx context.Context, repair bool, report func(*systemv1.CheckResponse) error) error {
	results := make([]seen, len(s.checks))
	var wg sync.WaitGroup
	for i, c := range s.checks {
		wg.Go(func() { results[i] = twice(ctx, c) })
	}
	wg.Wait()
	for i, c := range s.checks {
		for _, subject := range results[i].subjects {
			if ctx.Err() != nil {
				return fmt.Errorf("check: %w", context.Cause(ctx))
			}
			if err := report(settle(ctx, c.Name, subject, results[i].found[subject], repair)); err != nil {
				return err
			}
		}
	}
	return nil
}

// settle makes the line for a difference, after repairing it if it should.
func settle(ctx context.Context, name, subject string, d difference, repair bool) *systemv1.CheckResponse {
	r := &systemv1.CheckResponse{Invariant: name, Subject: subject, Detail: d.detail}
	if !repair || d.repair == nil {
		return r
	}
	ctx, cancel := context.WithTimeoutCause(ctx, checkTime, fmt.Errorf("repair took more than %v: %w", checkTime, context.DeadlineExceeded))
	defer cancel()
	if err := d.repair(ctx); err != nil {
		r.Detail += "; repair: " + sentence.Of(err)
		return r
	}
	r.Repaired = true
	return r
}

// twice looks twice if the first look finds something, and keeps what both have seen.
func twice(ctx context.Context, c check.Check) seen {
	first := look(ctx, c)
	if len(first.subjects) == 0 {
		return first
	}
	select {
	case <-time.After(lookAgain):
	case <-ctx.Done():
		return first
	}
	second, both := look(ctx, c), seen{found: map[string]difference{}}
	for _, subject := range second.subjects {
		if _, ok := first.found[subject]; ok {
			both.add(subject, second.found[subject])
		}
	}
	return both
}

func (s *seen) add(subject string, d difference) {
	if old, ok := s.found[subject]; ok { // a second thing about one subject
		d.detail = old.detail + "; " + d.detail
		d.repair = bothOf(old.repair, d.repair)
	} else {
		s.subjects = append(s.subjects, subject)
	}
	s.found[subject] = d
}

// bothOf is one repair after the other; of what cannot be repaired in part nothing is.
func bothOf(a, b func(context.Context) error) func(context.Context) error {
	if a == nil || b == nil {
		return nil
	}
	return func(ctx context.Context) error { return errors.Join(a(ctx), b(ctx)) }
}

// look runs a check once.
func look(ctx context.Context, c check.Check) seen {
	ctx, cancel := context.WithTimeoutCause(ctx, checkTime, fmt.Errorf("it took more than %v: %w", checkTime, context.DeadlineExceeded))
	defer cancel()
	s := seen{found: map[string]difference{}}
	var mu sync.Mutex // a check may ask several drivers at once
	if err := run(ctx, c, func(subject, detail string, repair func(context.Context) error) {
		mu.Lock()
		defer mu.Unlock()
		s.add(subject, difference{detail, repair})
	}); err != nil {
		s.add("check "+c.Name, difference{detail: "it could not be made: " + sentence.Of(err)})
	}
	return s
}

func run(ctx context.Context, c check.Check, report check.Report) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("panic: %v", r)
		}
	}()
	return c.Run(ctx, report)
}
