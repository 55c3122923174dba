package oci

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/gantryd/gantry/shim/runtime"
	"github.com/gantryd/gantry/shim/runtime/native"
)

// saying is what a program wrote into its log before it failed.
type saying struct {
	runtime, verb, words string
	class                error
}

// Error is the sentence.
func (s *saying) Error() string { return "runtime " + s.runtime + ": " + s.verb + ": " + s.words }

// Unwrap is the class.
func (s *saying) Unwrap() error { return s.class }

// said is the last error in a log of JSON lines.
func (r *Runtime) said(log, verb string, st *os.ProcessState) error {
	s := &saying{runtime: r.o.Name, verb: verb, words: "it ended with " + st.String() + " and did not say why", class: errdefs.ErrUnknown}
	raw, _ := os.ReadFile(log) //nolint:gosec // what is not there says nothing
	for l := range bytes.Lines(raw[:min(len(raw), maxOutput)]) {
		var line struct {
			Msg   string `json:"msg"`
			Level string `json:"level"`
		}
		if json.Unmarshal(l, &line) == nil && line.Msg != "" && slices.Contains([]string{"error", "fatal", "panic", ""}, line.Level) {
			s.words = strings.TrimSpace(line.Msg)
		}
	}
	for _, c := range classes {
		if c.words.MatchString(s.words) {
			s.class = c.class
			break
		}
	}
	return s
}

// classes are told by the words of crun and runc, in which others follow them.
var classes = []struct {
	words *regexp.Regexp
	class error
}{
	{regexp.MustCompile(`(?i)container .*(does not exist|not found)|open .*status.*: no such file`), errdefs.ErrNotFound},
	{regexp.MustCompile(`(?i)container .*already exists|already exists.*container|given ID already exists|ID already in use`), errdefs.ErrAlreadyExists},
	{regexp.MustCompile(`(?i)container .*(not running|not been started|is not created|stopped|paused)|cannot (exec|start)`), errdefs.ErrFailedPrecondition},
}

// about are words about the command, not the container: of crun ("executable file `x` not found in $PATH",
// "open executable", "exec"), and of runc ("exec: \"x\": …").
var about = []struct {
	words *regexp.Regexp
	class error
}{
	{regexp.MustCompile("(?i)executable (file|path) .*not found|exec: \".*\": .*(no such file|not found|not a directory)|(open|stat|find) executable: (no such file|not a directory)"), errdefs.ErrNotFound},
	{regexp.MustCompile(`(?i)(open|find|access) executable|exec: ".*": .*(permission denied|is a directory)|exec .*: permission denied`), errdefs.ErrPermissionDenied},
	{regexp.MustCompile(`(?i)exec format error`), errdefs.ErrFailedPrecondition},
}

// seen is what is against the command in the root filesystem, without the volumes in it.
func (c *container) seen(spec *specs.Process) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.root < 0 {
		return nil
	}
	return native.Blame(c.root, spec)
}

// blame makes a runtime.CommandError of err if the program's words are about the command. Where the same
// is seen in the container's own files it is said in our words, else in the program's.
func (c *container) blame(err error, spec *specs.Process) error {
	var s *saying
	if !errors.As(err, &s) {
		return err
	}
	for _, a := range about {
		if !a.words.MatchString(s.words) {
			continue
		}
		var command *runtime.CommandError
		if errors.As(c.seen(spec), &command) && (!errdefs.IsNotFound(command) || errdefs.IsNotFound(a.class)) {
			return command // what is not there and yet cannot be executed is on a volume
		}
		return &runtime.CommandError{Command: spec.Args[0], Reason: fmt.Sprintf("%s: %s", s.runtime, s.words), Class: a.class}
	}
	return err
}
