package native

import (
	"github.com/mailru/easyjson/jwriter"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// stateJSON is a container's state as hooks read it, written without reflection: see package spec.
func stateJSON(s specs.State) ([]byte, error) {
	var w jwriter.Writer
	writeState(&w, s)
	return w.BuildBytes()
}

func writeState(w *jwriter.Writer, s specs.State) {
	w.RawString(`{"ociVersion":`)
	w.String(s.Version)
	w.RawString(`,"id":`)
	w.String(s.ID)
	w.RawString(`,"status":`)
	w.String(string(s.Status))
	if s.Pid != 0 {
		w.RawString(`,"pid":`)
		w.Int(s.Pid)
	}
	w.RawString(`,"bundle":`)
	w.String(s.Bundle)
	for i, key := range sorted(s.Annotations) {
		if i == 0 {
			w.RawString(`,"annotations":{`)
		} else {
			w.RawByte(',')
		}
		w.String(key)
		w.RawByte(':')
		w.String(s.Annotations[key])
	}
	if len(s.Annotations) > 0 {
		w.RawByte('}')
	}
	w.RawByte('}')
}

// processJSON is a process's state as the listener of its seccomp filter reads it.
func processJSON(s specs.ContainerProcessState) ([]byte, error) {
	var w jwriter.Writer
	w.RawString(`{"ociVersion":`)
	w.String(s.Version)
	w.RawString(`,"fds":[`)
	for i, name := range s.Fds {
		if i > 0 {
			w.RawByte(',')
		}
		w.String(name)
	}
	w.RawString(`],"pid":`)
	w.Int(s.Pid)
	if s.Metadata != "" {
		w.RawString(`,"metadata":`)
		w.String(s.Metadata)
	}
	w.RawString(`,"state":`)
	writeState(&w, s.State)
	w.RawByte('}')
	return w.BuildBytes()
}
