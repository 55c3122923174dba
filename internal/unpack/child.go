package unpack

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime/debug"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// Main is the unpacker's main. A program that calls Run calls Main first of all: it returns at once unless
// this process was started by Run, and then never.
func Main() {
	if len(os.Args) != 1 || os.Args[0] != argv0 {
		return
	}
	debug.SetGCPercent(400) // a short life, and little that lives in it
	var ans answer
	res, err := serve()
	ans.Result = res
	if err != nil {
		ans = refuse(err)
	}
	if err := json.NewEncoder(os.NewFile(answerFD, "answer")).Encode(ans); err != nil {
		fmt.Fprintln(os.Stderr, "answer:", err)
		unix.Exit(1)
	}
	unix.Exit(0) // os.Exit would first run what a race detector wants to say, which takes a second
}

// refuse puts an error into words that keep its class.
func refuse(err error) answer {
	ans := answer{Class: "internal", Error: err.Error()}
	for name, class := range classes {
		if errors.Is(err, class) {
			ans.Class = name
		}
	}
	if errors.Is(err, ErrNeedsParent) {
		ans.Reason = needs
	}
	// The class is said again by whoever reads this.
	var l layerError
	if errors.As(err, &l) {
		ans.Error = l.says
	}
	return ans
}

// layerError is an error with a class that its sentence does not repeat.
type layerError struct {
	says  string
	class error
}

func (e layerError) Error() string { return e.says }
func (e layerError) Unwrap() error { return e.class }

func serve() (Result, error) {
	var job Job
	raw, err := io.ReadAll(os.NewFile(jobFD, "job"))
	if err != nil {
		return Result{}, fmt.Errorf("read job: %w", err)
	}
	if err := json.Unmarshal(raw, &job); err != nil {
		return Result{}, fmt.Errorf("read job: %w", err)
	}
	if err := confine(job.Mounts); err != nil {
		return Result{}, err
	}
	root, err := unix.Open(".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return Result{}, fmt.Errorf("open the layer's root: %w", err)
	}
	return layer(root, job, os.Stdin)
}

// layer unpacks the stream into the directory root.
func layer(root int, job Job, r io.Reader) (Result, error) {
	if job.Limits.Bytes <= 0 {
		job.Limits.Bytes = DefaultBytes
	}
	if job.Limits.Entries <= 0 {
		job.Limits.Entries = DefaultEntries
	}
	switch job.Form {
	case Apply, Overlay, Measure:
	default:
		return Result{}, layerError{fmt.Sprintf("form %q is not known", job.Form), errdefs.ErrInvalidArgument}
	}
	s := newStream(r, job)
	defer s.stop()
	w := newWriter(root, job)
	defer w.close()
	var err error
	if job.Form != Measure {
		err = w.all(s)
	}
	if err == nil {
		_, err = io.Copy(io.Discard, s) // padding after the end belongs to the digest
	}
	if format := (formatError{}); errors.As(err, &format) {
		_, _ = io.Copy(io.Discard, s) // is it the archive, or the stream it came in?
	}
	if serr := s.failure(); serr != nil {
		err = serr // the archive looks broken because the stream is
	}
	if err != nil {
		return Result{}, err
	}
	if job.Form != Measure {
		if err := w.finish(); err != nil {
			return Result{}, err
		}
	}
	res := Result{Entries: w.entries}
	res.DiffID, res.Bytes = s.sum()
	return res, nil
}
