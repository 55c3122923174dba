package main

import (
	"os/exec"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// zombie is a child of this process's that has ended, and that nobody waits for but the test.
func zombie(t *testing.T) int {
	t.Helper()
	cmd := exec.Command("/bin/true")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(10 * time.Second); peek() == 0; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("it does not end")
		}
	}
	return cmd.Process.Pid
}

func reaped(pid int) bool { return unix.Kill(pid, 0) != nil }

// TestReaperLeavesNewChildren: whoever makes a process, or waits for one of its own, is not robbed of it.
// Yet one who goes on and on does not keep others from being reaped.
func TestReaperLeavesNewChildren(t *testing.T) {
	r := newReaper()
	pid := 0
	r.guard(func() {
		pid = zombie(t)
		r.guard(func() {}) // as a runtime does inside of Create
		if r.one() || reaped(pid) {
			t.Error("a guarded child is reaped")
		}
	})
	if !r.one() || !reaped(pid) {
		t.Error("an orphan is not reaped")
	}

	r.make(func() int { pid = zombie(t); return pid })
	if r.one() || reaped(pid) {
		t.Error("a process that is known is reaped")
	}
	r.forget(pid)
	if !r.one() || !reaped(pid) {
		t.Error("a process that is forgotten is not reaped")
	}

	first, second, done := make(chan struct{}), make(chan struct{}), make(chan struct{}, 2)
	hold := func(until chan struct{}) {
		began := make(chan struct{})
		go r.guard(func() { close(began); <-until; done <- struct{}{} })
		<-began
	}
	hold(first)
	pid = zombie(t)
	if r.one() {
		t.Error("it may be the first one's")
	}
	hold(second)
	close(first)
	<-done
	for end := time.Now().Add(10 * time.Second); !reaped(pid); time.Sleep(time.Millisecond) {
		if r.one(); time.Now().After(end) {
			t.Fatal("a guard that began after an orphan had ended keeps it from being reaped")
		}
	}
	close(second)
	<-done
}
