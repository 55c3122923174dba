package containers

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/gantryd/gantry/internal/bundle"
	"github.com/gantryd/gantry/internal/cdi"
	containersv1 "github.com/gantryd/gantry/proto/gantry/containers/v1"
)

func joining(of string, kinds ...string) *containersv1.Spec {
	s := &containersv1.Spec{}
	n := &containersv1.Namespace{Mode: containersv1.Namespace_MODE_CONTAINER, Container: of}
	for _, k := range kinds {
		switch k {
		case "network":
			s.NetworkMode, s.NetworkContainer = containersv1.NetworkMode_NETWORK_MODE_CONTAINER, of
		case "pid":
			s.PidNamespace = n
		case "ipc":
			s.IpcNamespace = n
		case "uts":
			s.UtsNamespace = n
		}
	}
	return s
}

func shareableIPC() *containersv1.Spec {
	return &containersv1.Spec{Hostname: "first", IpcNamespace: &containersv1.Namespace{Mode: containersv1.Namespace_MODE_SHAREABLE}}
}

// config is the config.json that was written for a container.
func (w *world) config(c *containersv1.Container) *specs.Spec {
	w.t.Helper()
	raw, err := os.ReadFile(w.state(c.GetMeta().GetId()).Config())
	if err != nil {
		w.t.Fatal(err)
	}
	s := &specs.Spec{}
	if err := json.Unmarshal(raw, s); err != nil {
		w.t.Fatal(err)
	}
	return s
}

func space(s *specs.Spec, kind string) string {
	i := slices.IndexFunc(s.Linux.Namespaces, func(n specs.LinuxNamespace) bool { return string(n.Type) == kind })
	if i < 0 {
		return "the host's"
	}
	return s.Linux.Namespaces[i].Path
}

// TestJoin has containers share namespaces, one of them through another.
func TestJoin(t *testing.T) {
	w := newWorld(t)
	first, shim := w.run("first", shareableIPC())
	if n := shim.boot.GetShmBytes(); n != 64<<20 {
		t.Errorf("memory to share: %d bytes", n)
	}
	started, err := bundle.StartTime(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	w.run("second", joining("first", "network", "pid", "ipc", "uts"))
	var third *containersv1.Container
	third, shim = w.run("third", joining("second", "network", "pid", "ipc", "uts"))
	id := first.GetMeta().GetId()
	if n := shim.boot.GetNetns(); n != w.NetNS.Path(id) {
		t.Errorf("network namespace %q, want that of the first", n)
	}
	var kinds []string
	for _, j := range shim.boot.GetJoins() {
		kinds = append(kinds, j.GetNamespace())
		if j.GetPid() != fakePID || j.GetStarted() != started || j.GetContainer() != "first" {
			t.Errorf("%v", j)
		}
	}
	if fmt.Sprint(kinds) != "[pid ipc uts]" {
		t.Errorf("joins %v", kinds)
	}
	s := w.config(third)
	for kind, want := range map[string]string{"network": w.NetNS.Path(id), "pid": fmt.Sprintf("/proc/%d/ns/pid", fakePID), "ipc": fmt.Sprintf("/proc/%d/ns/ipc", fakePID), "cgroup": ""} {
		if got := space(s, kind); got != want {
			t.Errorf("%s namespace %q, want %q", kind, got, want)
		}
	}
	if !slices.ContainsFunc(s.Mounts, func(m specs.Mount) bool { return m.Destination == "/dev/shm" && m.Source == w.state(id).Shm() }) {
		t.Errorf("no memory of the first's: %v", s.Mounts)
	}
	if !slices.ContainsFunc(s.Mounts, func(m specs.Mount) bool {
		return m.Destination == "/etc/hosts" && m.Source == filepath.Join(w.dir(id), "hosts")
	}) {
		t.Errorf("not the hosts of the first: %v", s.Mounts)
	}
	if !slices.Contains(s.Process.Env, "HOSTNAME=first") || s.Hostname != "" {
		t.Errorf("goes by %q, %v", s.Hostname, s.Process.Env)
	}
	if third.GetShared()[0].GetContainer() == id || len(w.nets.all()) != 1 {
		t.Errorf("%v, %v", third.GetShared(), w.nets.all())
	}
	for _, name := range []string{"third", "second", "first"} {
		if err := w.Remove(t.Context(), name, true, false); err != nil {
			t.Error(err)
		}
	}
	w.clean()
	if w.ns.all()[id] {
		t.Error("the namespace is still pinned")
	}
}

// TestJoinHost follows a container that has the host's.
func TestJoinHost(t *testing.T) {
	w := newWorld(t)
	host := &containersv1.Namespace{Mode: containersv1.Namespace_MODE_HOST}
	w.run("first", &containersv1.Spec{NetworkMode: containersv1.NetworkMode_NETWORK_MODE_HOST, PidNamespace: host, IpcNamespace: host, UtsNamespace: host})
	c, shim := w.run("second", joining("first", "network", "pid", "ipc", "uts"))
	s := w.config(c)
	for _, kind := range []string{"network", "pid", "ipc", "uts"} {
		if got := space(s, kind); got != "the host's" {
			t.Errorf("%s namespace %q", kind, got)
		}
	}
	if len(shim.boot.GetJoins()) != 0 || shim.boot.GetNetns() != "" || len(s.Linux.Sysctl) != 0 {
		t.Errorf("%v, %v", shim.boot, s.Linux.Sysctl)
	}
	w.clean()
}

// TestJoinRefused is a container that cannot be joined, at create or at start.
func TestJoinRefused(t *testing.T) {
	w := newWorld(t)
	w.create("private", nil)
	w.create("shares", shareableIPC())
	if _, err := w.Create(t.Context(), "x", nil, with(joining("nobody", "pid"))); !errdefs.IsNotFound(err) {
		t.Errorf("nobody: %v", err)
	}
	if _, err := w.Create(t.Context(), "x", nil, with(joining("private", "ipc"))); !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), "--ipc shareable") {
		t.Errorf("an IPC namespace that is not offered: %v", err)
	}
	for _, kind := range []string{"network", "pid", "ipc", "uts"} {
		name := "waits-" + kind
		w.create(name, joining("shares", kind))
		if _, err := w.Start(t.Context(), name); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "join "+kind+" of container shares: it does not run: start it first") {
			t.Errorf("%s: %v", kind, err)
		}
	}
	if _, err := w.Start(t.Context(), "shares"); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Start(t.Context(), "waits-pid"); err != nil {
		t.Errorf("once it runs: %v", err)
	}
	restless := w.shims.of(w.state(w.eventually("shares", inPhase(containersv1.Phase_PHASE_RUNNING)).GetMeta().GetId()))
	restless.set(func() { restless.restless = true })
	if _, err := w.Start(t.Context(), "waits-ipc"); !errdefs.IsAborted(err) || !strings.Contains(err.Error(), "just starting or ending") {
		t.Errorf("one whose process may be another's by now: %v", err)
	}
	if err := w.Remove(t.Context(), "shares", true, false); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Start(t.Context(), "waits-uts"); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "it was removed: make this container anew") {
		t.Errorf("once it is gone: %v", err)
	}
	w.clean()
}

func with(s *containersv1.Spec) *containersv1.Spec {
	s.Image = "busybox"
	return s
}

// TestGiven is what of the host a container is given, in config.json and to its shim.
func TestGiven(t *testing.T) {
	w := newWorld(t)
	var asked [][]string
	w.Service.Seccomp = func(_ context.Context, caps []string) (string, error) {
		asked = append(asked, caps)
		return "/filter", nil
	}
	w.Service.Capabilities = []string{"CAP_CHOWN", "CAP_SYS_ADMIN"}
	_, shim := w.run("usual", &containersv1.Spec{CapDrop: []string{"ALL"}, CapAdd: []string{"KILL"}})
	if shim.boot.GetSeccomp() != "/filter" || len(asked) != 1 || !slices.Equal(asked[0], []string{"CAP_KILL"}) {
		t.Errorf("%q for %v", shim.boot.GetSeccomp(), asked)
	}
	c, shim := w.run("privileged", &containersv1.Spec{Privileged: true})
	s := w.config(c)
	if shim.boot.GetSeccomp() != "" || s.Linux.Seccomp != nil || !slices.Equal(s.Process.Capabilities.Bounding, w.Capabilities) || len(s.Linux.MaskedPaths) != 0 {
		t.Errorf("%v, %+v", shim.boot, s.Linux)
	}
	if !slices.ContainsFunc(s.Linux.Devices, func(d specs.LinuxDevice) bool { return d.Path == "/dev/null" }) {
		t.Error("a privileged container without the host's devices")
	}
	c, shim = w.run("profile", &containersv1.Spec{
		Seccomp: &containersv1.Seccomp{Profile: []byte(`{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["mkdir"],"action":"SCMP_ACT_ERRNO"}]}`)},
		Devices: []*containersv1.Device{{HostPath: "/dev/null", Path: "/dev/mine", Access: "r"}},
	})
	s = w.config(c)
	if shim.boot.GetSeccomp() != "" || s.Linux.Seccomp == nil || s.Linux.Seccomp.Syscalls[0].Names[0] != "mkdir" {
		t.Errorf("%q, %+v", shim.boot.GetSeccomp(), s.Linux.Seccomp)
	}
	w.CDI = cdi.Dirs{t.TempDir()}
	if _, err := w.Create(t.Context(), "described", nil, with(&containersv1.Spec{Devices: []*containersv1.Device{{Cdi: "a.com/b=c"}}})); !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), "a.com/b=c") {
		t.Errorf("a device that nobody describes: %v", err)
	}
	if err := os.WriteFile(filepath.Join(w.CDI[0], "a.json"), []byte(`{"cdiVersion":"0.6.0","kind":"a.com/b","devices":[{"name":"c","containerEdits":{"env":["THING=yes"],"deviceNodes":[{"path":"/dev/thing","hostPath":"/dev/null"}]}}]}`), 0o600); err != nil {
		t.Fatal(err)
	}
	c, _ = w.run("described", &containersv1.Spec{Devices: []*containersv1.Device{{Cdi: "a.com/b=c"}}})
	if s := w.config(c); !slices.Contains(s.Process.Env, "THING=yes") || len(s.Linux.Devices) != 1 || s.Linux.Devices[0].Path != "/dev/thing" {
		t.Errorf("%+v", s.Linux)
	}
	if d := s.Linux.Devices; len(d) != 1 || d[0].Path != "/dev/mine" || d[0].Minor != 3 {
		t.Errorf("%+v", d)
	}
	w.clean()
}
