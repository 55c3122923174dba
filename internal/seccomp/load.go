package seccomp

import (
	"encoding/json"

	profile "github.com/moby/profiles/seccomp"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// Load reads a user's profile, as Docker's users or the OCI specification write it, for a container with
// these capabilities in its bounding set, and has it compiled, so that what is wrong with it is said
// before anything is made. The error is InvalidArgument and names the rule.
func Load(raw []byte, caps []string) (*specs.LinuxSeccomp, error) {
	if err := shape(raw); err != nil {
		return nil, err
	}
	spec := specs.Spec{Process: &specs.Process{Capabilities: &specs.LinuxCapabilities{Bounding: caps}}}
	p, err := profile.LoadProfile(string(raw), &spec)
	if err != nil {
		return nil, invalid("%w", err)
	}
	if _, err := Translate(p); err != nil {
		return nil, err
	}
	return p, nil
}

// shape looks for what a parser passes over in silence: a profile without an action allows or refuses
// nobody knows what, and often is another file.
func shape(raw []byte) error {
	var p struct {
		DefaultAction string `json:"defaultAction"`
	}
	if err := json.Unmarshal(raw, &p); err != nil {
		return invalid("it is no JSON object: %w", err)
	}
	if p.DefaultAction == "" {
		return invalid("it has no defaultAction; SCMP_ACT_ERRNO is usual")
	}
	return nil
}
