// Package spec reads the JSON of the OCI runtime specification, without reflection: what encoding/json
// learns about the types it reads (170 KB for config.json) every shim would keep for as long as its
// container runs, and learning it takes a millisecond of each start.
//
// The readers in spec_easyjson.go are generated ("make generate") from the types here, and with them
// from those of runtime-spec: a field that a new version of the specification adds is read once the
// module is updated and the file generated anew. Names of members are compared as they are written;
// members that are not known are passed over.
package spec

import (
	"github.com/mailru/easyjson/jlexer"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// config is config.json, but for what is about other systems than Linux.
//
//easyjson:json
type config struct {
	Version     string            `json:"ociVersion"`
	Process     *specs.Process    `json:"process"`
	Root        *specs.Root       `json:"root"`
	Hostname    string            `json:"hostname"`
	Domainname  string            `json:"domainname"`
	Mounts      []specs.Mount     `json:"mounts"`
	Hooks       *specs.Hooks      `json:"hooks"`
	Annotations map[string]string `json:"annotations"`
	Linux       *specs.Linux      `json:"linux"`
}

//easyjson:json
type process specs.Process

//easyjson:json
type resources specs.LinuxResources

// Config reads config.json. What it says about other systems (solaris, windows, vm, zos, freebsd) is
// passed over.
func Config(raw []byte) (*specs.Spec, error) {
	var c config
	if err := read(raw, &c); err != nil {
		return nil, err
	}
	return &specs.Spec{
		Version: c.Version, Process: c.Process, Root: c.Root, Hostname: c.Hostname, Domainname: c.Domainname, Mounts: c.Mounts,
		Hooks: c.Hooks, Annotations: c.Annotations, Linux: c.Linux,
	}, nil
}

// Process reads one process, as the "process" of config.json.
func Process(raw []byte) (*specs.Process, error) {
	var p process
	if err := read(raw, &p); err != nil {
		return nil, err
	}
	return (*specs.Process)(&p), nil
}

// Resources reads bounds, as the "resources" of config.json's "linux".
func Resources(raw []byte) (*specs.LinuxResources, error) {
	var r resources
	if err := read(raw, &r); err != nil {
		return nil, err
	}
	return (*specs.LinuxResources)(&r), nil
}

type reader interface{ UnmarshalEasyJSON(*jlexer.Lexer) }

// read reads one value; anything but white space behind it is an error.
func read(raw []byte, into reader) error {
	l := jlexer.Lexer{Data: raw}
	into.UnmarshalEasyJSON(&l)
	l.Consumed()
	return l.Error()
}
