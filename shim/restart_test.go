package main

import (
	"testing"
	"time"

	shimv1 "github.com/gantryd/gantry/proto/gantry/shim/v1"
)

func TestAgain(t *testing.T) {
	failure := &shimv1.Restart{OnFailure: true}
	failure3 := &shimv1.Restart{OnFailure: true, MaxAttempts: 3}
	always := &shimv1.Restart{Always: true}
	for _, c := range []struct {
		name           string
		p              *shimv1.Restart
		code, restarts uint32
		stopped, want  bool
	}{
		{"no policy", nil, 1, 0, false, false},
		{"empty policy", &shimv1.Restart{}, 1, 0, false, false},
		{"on failure, success", failure, 0, 0, false, false},
		{"on failure, failure", failure, 1, 1000, false, true},
		{"on failure, stopped", failure, 143, 0, true, false},
		{"three times, twice done", failure3, 1, 2, false, true},
		{"three times, done", failure3, 1, 3, false, false},
		{"always, success", always, 0, 1000, false, true},
		{"always, failure", always, 1, 0, false, true},
		{"always, stopped", always, 0, 0, true, false},
		{"always, three times", &shimv1.Restart{Always: true, MaxAttempts: 3}, 0, 3, false, false},
	} {
		if got := again(c.p, c.code, c.restarts, c.stopped); got != c.want {
			t.Errorf("%s: %v", c.name, got)
		}
	}
}

func TestBackoff(t *testing.T) {
	for _, c := range []struct{ last, ran, want time.Duration }{
		{0, 0, 100 * time.Millisecond},
		{100 * time.Millisecond, 0, 200 * time.Millisecond},
		{51200 * time.Millisecond, time.Second, time.Minute},
		{time.Minute, 9999 * time.Millisecond, time.Minute},
		{time.Minute, 10 * time.Second, 100 * time.Millisecond},
	} {
		if got := backoff(c.last, c.ran); got != c.want {
			t.Errorf("after %v, ran %v: %v", c.last, c.ran, got)
		}
	}
}
