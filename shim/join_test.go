package main

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/gantryd/gantry/internal/bundle"
	"github.com/gantryd/gantry/internal/cgroup"
	shimv1 "github.com/gantryd/gantry/proto/gantry/shim/v1"
)

// joins has b join a namespace of other's first process.
func (b *box) joins(other *box, kind string) *box {
	b.t.Helper()
	pid := other.until(phase(running)).GetPid()
	started, err := bundle.StartTime(int(pid))
	b.ok(err)
	b.boot.Joins = append(b.boot.Joins, &shimv1.Join{Namespace: kind, Container: "other", Pid: pid, Started: started})
	for i, n := range b.spec.Linux.Namespaces {
		if string(n.Type) == kind {
			b.spec.Linux.Namespaces[i].Path = "/proc/1/ns/nothing-that-could-be-joined-by-mistake"
		}
	}
	if kind == "uts" {
		b.spec.Hostname = ""
	}
	return b
}

func TestJoin(t *testing.T) {
	other := newBox(t, "sleep", "1000")
	other.spec.Hostname = "theirs"
	other.run()
	b := newBox(t, "cat", "/proc/sys/kernel/hostname").joins(other, "uts").joins(other, "ipc")
	b.run()
	if x := b.wait(); x.GetCode() != 0 || b.logged() != "theirs\n" {
		t.Errorf("%v: %q", x, b.logged())
	}
}

// TestJoinAnother never joins a process that is not the one that was meant: pids come again.
func TestJoinAnother(t *testing.T) {
	other := newBox(t, "sleep", "1000").run()
	for name, change := range map[string]func(*box, *shimv1.Join){
		"a pid that came again":                      func(_ *box, j *shimv1.Join) { j.Started++ },
		"a pid that is nobody's":                     func(_ *box, j *shimv1.Join) { j.Pid = 1 << 22 },
		"a namespace that config.json does not join": func(b *box, j *shimv1.Join) { j.Namespace = "cgroup" },
		"a network that is gone":                     func(b *box, _ *shimv1.Join) { b.boot.Netns = "/run/no-such-network" },
	} {
		b := newBox(t, "true").joins(other, "uts")
		change(b, b.boot.Joins[0])
		_, err := b.spawn().shim.Create(b.ctx(), &shimv1.CreateRequest{})
		if err == nil || !strings.Contains(err.Error(), "join ") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestJoinAgain looks again before each run: the one that is joined may have been started again.
func TestJoinAgain(t *testing.T) {
	other := newBox(t, "sleep", "1000").run()
	b := newBox(t, "sleep", "1000").joins(other, "ipc")
	b.boot.Restart = &shimv1.Restart{Always: true, MaxAttempts: 1}
	b.run()
	other.kill(&shimv1.KillRequest{Signal: 9, Last: true})
	other.wait()
	b.kill(&shimv1.KillRequest{Signal: 9})
	st := b.until(phase(shimv1.Phase_PHASE_EXITED))
	if !strings.Contains(st.GetMessage(), "was started again: start this container again") || st.GetExit().GetReason() != reasonStart {
		t.Errorf("%v", st)
	}
}

// TestBuryElsewhere finds a cgroup that is not under the daemon's own, and memory that was shared.
func TestBuryElsewhere(t *testing.T) {
	b := newBox(t, "sleep", "1000")
	parent := "/" + instance + "-elsewhere"
	b.spec.Linux.CgroupsPath = parent + "/" + b.boot.GetContainerId()
	b.spec.Mounts = append(b.spec.Mounts, specs.Mount{Destination: "/dev/shm", Type: "bind", Source: b.dir.Shm(), Options: []string{"rbind", "rprivate"}})
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		g, err := cgroup.Open(parent)
		if err == nil {
			err = g.Remove(ctx)
		}
		if err != nil {
			t.Error(err)
		}
	})
	b.boot.ShmBytes = 1 << 20
	b.spawn()
	_, err := b.shim.Create(b.ctx(), &shimv1.CreateRequest{})
	b.ok(err)
	b.start()
	b.ok(os.WriteFile(filepath.Join(b.dir.Shm(), "word"), []byte("shared\n"), 0o600))
	if h := b.exec("read", "cat", "/dev/shm/word"); h.out.String() != "shared\n" {
		t.Errorf("%q %q", h.out.String(), h.err.String())
	}
	pid := int(b.until(phase(running)).GetPid())
	if _, err := b.sup.Bury(b.ctx(), b.dir); err != nil {
		t.Fatal(err)
	}
	if t0, err := bundle.StartTime(pid); t0 != 0 || err != nil {
		t.Errorf("the container lives: %d %v", t0, err)
	}
	if kids, err := cgroup.Children(parent); err != nil && !errdefs.IsNotFound(err) || len(kids) > 0 {
		t.Errorf("left: %v, %v", kids, err)
	}
	if _, err := os.Stat(b.dir.State); !os.IsNotExist(err) {
		t.Errorf("the state directory: %v", err)
	}
}
