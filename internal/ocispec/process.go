package ocispec

import (
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	containersv1 "github.com/gantryd/gantry/proto/gantry/containers/v1"
	imagesv1 "github.com/gantryd/gantry/proto/gantry/images/v1"
)

const defaultPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// Command is what runs: the entrypoint and its arguments. Whoever replaces the image's entrypoint
// replaces the arguments meant for it as well.
func Command(s *containersv1.Spec, image *imagesv1.Config) ([]string, error) {
	entrypoint, args := image.GetEntrypoint(), image.GetCmd()
	if len(s.GetEntrypoint()) > 0 || s.GetClearEntrypoint() {
		entrypoint, args = s.GetEntrypoint(), nil
	}
	if len(s.GetArgs()) > 0 {
		args = s.GetArgs()
	}
	command := slices.Concat(entrypoint, args)
	if len(command) == 0 || command[0] == "" && len(command) == 1 {
		return nil, invalid("no command: image %s names none; write one after the image", s.GetImage())
	}
	return command, nil
}

// Env is the environment: the daemon's defaults, the image's over them, the user's over both. A name
// of the user's without "=" takes a variable away.
func Env(s *containersv1.Spec, image *imagesv1.Config, hostname string) []string {
	env := []string{defaultPath, "HOSTNAME=" + hostname}
	if s.GetTty() {
		env = append(env, "TERM=xterm")
	}
	return overlay(overlay(env, image.GetEnv()), s.GetEnv())
}

// overlay puts variables over others, in place where they are known.
func overlay(under, over []string) []string {
	at := make(map[string]int, len(under)+len(over))
	for i, kv := range under {
		key, _, _ := strings.Cut(kv, "=")
		at[key] = i
	}
	out := slices.Clone(under)
	for _, kv := range over {
		key, _, set := strings.Cut(kv, "=")
		i, known := at[key]
		switch {
		case !set && known:
			out[i] = ""
			delete(at, key)
		case !set:
		case known:
			out[i] = kv
		default:
			at[key] = len(out)
			out = append(out, kv)
		}
	}
	return slices.DeleteFunc(out, func(kv string) bool { return kv == "" })
}

func process(c *containersv1.Container, have []string) (*specs.Process, error) {
	s, image := c.GetSpec(), c.GetOrigin().GetConfig()
	p := &specs.Process{
		Terminal:        s.GetTty(),
		Args:            c.GetCommand(),
		Env:             Env(s, image, Hostname(c)),
		Cwd:             or(s.GetWorkdir(), image.GetWorkdir(), "/"),
		Capabilities:    capabilitySets(Capabilities(s, have)),
		NoNewPrivileges: s.GetNoNewPrivileges(),
		Rlimits:         rlimits(s.GetRlimits()),
		ApparmorProfile: apparmor(s),
		User:            specs.User{AdditionalGids: groups(s)},
	}
	if s.OomScoreAdj != nil {
		n := int(s.GetOomScoreAdj())
		p.OOMScoreAdj = &n
	}
	if p.Cwd[0] != '/' { // an image may say what a user may not
		p.Cwd = "/" + p.Cwd
	}
	if len(p.Args) == 0 {
		var err error
		if p.Args, err = Command(s, image); err != nil {
			return nil, err
		}
	}
	return p, nil
}

// User is whom the process runs as, in the words of the user or the image. Root is "0" rather than
// nothing: so root has the groups that the image's /etc/group gives it, as with Docker.
func User(c *containersv1.Container) string {
	return or(c.GetSpec().GetUser(), c.GetOrigin().GetConfig().GetUser(), "0")
}

// Exec describes another process for c. have is as in Options.
func Exec(c *containersv1.Container, x *containersv1.ExecStart, have []string) (*specs.Process, error) {
	if len(x.GetArgs()) == 0 || x.GetArgs()[0] == "" {
		return nil, invalid("no command: write one after the container")
	}
	if w := x.GetWorkdir(); w != "" && w[0] != '/' {
		return nil, invalid("working directory %q: it must be an absolute path", w)
	}
	if err := checkEnv(x.GetEnv()); err != nil {
		return nil, err
	}
	for _, a := range x.GetArgs() {
		if strings.ContainsRune(a, 0) {
			return nil, invalid("argument %q: holds a NUL", a)
		}
	}
	p, err := process(c, have)
	if err != nil {
		return nil, err
	}
	if x.GetPrivileged() {
		p.Capabilities = capabilitySets(Capabilities(&containersv1.Spec{Privileged: true}, have))
	}
	p.Args, p.Terminal = x.GetArgs(), x.GetTty()
	if w := x.GetWorkdir(); w != "" {
		p.Cwd = w
	}
	if x.GetTty() && !c.GetSpec().GetTty() {
		p.Env = overlay([]string{"TERM=xterm"}, p.Env)
	}
	p.Env = overlay(p.Env, x.GetEnv())
	if x.GetTty() && x.GetSize().GetColumns() > 0 && x.GetSize().GetRows() > 0 {
		p.ConsoleSize = &specs.Box{Height: uint(x.GetSize().GetRows()), Width: uint(x.GetSize().GetColumns())}
	}
	return p, nil
}

func or(words ...string) string {
	for _, w := range words {
		if w != "" {
			return w
		}
	}
	return ""
}
