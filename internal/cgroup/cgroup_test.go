package cgroup

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// TestParse reads mountinfo as hosts have it.
func TestParse(t *testing.T) {
	for _, c := range []struct {
		name, text string
		mode       Mode
		v1         int
		v2         string
	}{
		{"v2", "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw\n", V2, 0, "/sys/fs/cgroup"},
		{"v1", "31 30 0:27 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n32 30 0:28 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd\n", V1, 2, ""},
		{"hybrid", "31 30 0:27 / /sys/fs/cgroup/memory rw shared:1 - cgroup cgroup rw,memory\n30 23 0:26 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n", Hybrid, 1, "/sys/fs/cgroup/unified"},
		{"a bind of a part is not the whole", "31 30 0:27 /docker /x rw - cgroup cgroup rw,memory\n30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n", V2, 0, "/sys/fs/cgroup"},
		{"the same hierarchy twice", "31 30 0:27 / /a rw - cgroup cgroup rw,memory\n33 30 0:27 / /b rw - cgroup cgroup rw,memory\n", V1, 1, ""},
	} {
		h, err := parse(strings.NewReader(c.text))
		if err != nil || h.Mode != c.mode || len(h.V1) != c.v1 || h.V2 != c.v2 {
			t.Errorf("%s: %+v, %v", c.name, h, err)
		}
	}
	if _, err := parse(strings.NewReader("1 2 3 / / rw - ext4 /dev/sda rw\n")); err == nil {
		t.Error("no cgroups and no error")
	}
}

// TestOpen refuses paths that could leave the hierarchy.
func TestOpen(t *testing.T) {
	for _, p := range []string{"", "/", "gantry", "/a/../b", "/a/", "/../x", "//x"} {
		if _, err := Open(p); err == nil {
			t.Errorf("%q is opened", p)
		}
	}
}

func group(t *testing.T) *Group {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: cgroups need root")
	}
	g, err := Open(fmt.Sprintf("/gantry-test-%d/%s", os.Getpid(), strings.ToLower(filepath.Base(t.Name()))))
	if err != nil {
		t.Fatal(err)
	}
	if err := g.Create(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeoutCause(context.Background(), 10*time.Second, context.DeadlineExceeded)
		defer cancel()
		if err := g.Kill(ctx); err != nil {
			t.Error(err)
		}
		if err := g.Remove(ctx); err != nil {
			t.Error(err)
		}
		if g.Exists() {
			t.Error("it is still there")
		}
		above, _ := Open(filepath.Dir(g.Path))
		_ = above.RemoveIfEmpty()
	})
	return g
}

// enter starts a command in the group, as a shell that writes itself into every hierarchy.
func enter(t *testing.T, g *Group, command string) *exec.Cmd {
	t.Helper()
	script := ""
	for _, d := range g.Dirs() {
		script += "echo $$ > " + d + "/cgroup.procs\n"
	}
	cmd := exec.Command("sh", "-ec", script+"echo in\n"+command)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := out.Read(make([]byte, 3)); err != nil {
		t.Fatalf("the shell did not get into the group: %v", err)
	}
	return cmd
}

// TestKill ends a group that forks as fast as it can, and one that is frozen.
func TestKill(t *testing.T) {
	g := group(t)
	for _, freeze := range []bool{false, true} {
		cmd := enter(t, g, "sleep 1000 & sleep 1000 & (while :; do sleep 0.01 & done) & wait")
		if freeze {
			if err := g.Freeze(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		ctx, cancel := context.WithTimeoutCause(t.Context(), 10*time.Second, context.DeadlineExceeded)
		go func() { _ = cmd.Wait() }() // its zombie is ours to take
		if err := g.Kill(ctx); err != nil {
			t.Fatal(err)
		}
		cancel()
		if pids, err := g.Pids(); err != nil || len(pids) > 0 {
			t.Errorf("left: %v, %v", pids, err)
		}
		if err := g.Thaw(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}

// TestFreeze stops a counter and lets it go on.
func TestFreeze(t *testing.T) {
	g := group(t)
	file := filepath.Join(t.TempDir(), "count")
	cmd := enter(t, g, "while :; do echo x >> "+file+"; sleep 0.01; done")
	defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
	size := func() int64 {
		st, err := os.Stat(file)
		if err != nil {
			return 0
		}
		return st.Size()
	}
	for end := time.Now().Add(5 * time.Second); size() == 0 && time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
	}
	if err := g.Freeze(t.Context()); err != nil {
		t.Fatal(err)
	}
	before := size()
	time.Sleep(100 * time.Millisecond) // what would write, were it not frozen, would write ten times
	if now := size(); now != before {
		t.Errorf("frozen, and wrote %d bytes", now-before)
	}
	if err := g.Thaw(t.Context()); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(5 * time.Second); size() == before; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("thawed, and does not go on")
		}
	}
}

// TestLimit writes limits and reads them back from the kernel; they can grow and shrink.
func TestLimit(t *testing.T) {
	g := group(t)
	p := func(n int64) *int64 { return &n }
	period := uint64(100000)
	for _, mem := range []int64{64 << 20, 32 << 20, 128 << 20} {
		swap := 2 * mem
		if err := g.Limit(&specs.LinuxResources{
			Memory: &specs.LinuxMemory{Limit: &mem, Swap: &swap}, CPU: &specs.LinuxCPU{Quota: p(50000), Period: &period}, Pids: &specs.LinuxPids{Limit: p(17)},
		}); err != nil {
			t.Fatal(err)
		}
		if g.h.Mode == V2 {
			continue // read back in test/vm
		}
		for file, want := range map[string]int64{
			g.dir("memory") + "/memory.limit_in_bytes": mem, g.dir("memory") + "/memory.memsw.limit_in_bytes": swap,
			g.dir("cpu") + "/cpu.cfs_quota_us": 50000, g.dir("pids") + "/pids.max": 17,
		} {
			if got, err := number(file); err != nil || got != want {
				t.Errorf("%s is %d, want %d (%v)", file, got, want, err)
			}
		}
	}
	if err := g.Limit(&specs.LinuxResources{Unified: map[string]string{"a": "b"}}); err == nil || !strings.Contains(err.Error(), "linux.resources.unified") {
		t.Errorf("not refused by name: %v", err)
	}
}

// TestOOM counts a process that the kernel killed.
func TestOOM(t *testing.T) {
	g := group(t)
	limit := int64(8 << 20)
	if err := g.Limit(&specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &limit, Swap: &limit}}); err != nil {
		t.Fatal(err)
	}
	_ = enter(t, g, "x=0123456789abcdef; while :; do x=$x$x; done").Wait()
	if s, err := g.Stats(); err != nil || s.OOMKills == 0 {
		t.Errorf("%+v, %v", s, err)
	}
}

var rules = func() []specs.LinuxDeviceCgroup {
	n := func(n int64) *int64 { return &n }
	return []specs.LinuxDeviceCgroup{
		{Access: "rwm"},
		{Allow: true, Type: "c", Access: "m"},
		{Allow: true, Type: "c", Major: n(1), Minor: n(3), Access: "rwm"},
		{Allow: true, Type: "c", Major: n(1), Minor: n(5), Access: "r"},
		{Allow: true, Type: "c", Major: n(136), Access: "rw"},
		{Allow: false, Type: "c", Major: n(136), Minor: n(7), Access: "w"},
	}
}()

// TestDevices: what the rules allow works in the group, and nothing else. On a hybrid host both
// ways are tried, the v2 program in the v2 tree.
func TestDevices(t *testing.T) {
	g := group(t)
	if err := g.Devices(rules); err != nil {
		t.Fatal(err)
	}
	try := func(what string) {
		t.Helper()
		dir := t.TempDir()
		for name, minor := range map[string]int{"null": 3, "zero": 5, "full": 7} {
			if err := unix.Mknod(filepath.Join(dir, name), unix.S_IFCHR|0o666, int(unix.Mkdev(1, uint32(minor)))); err != nil {
				t.Fatal(err)
			}
		}
		for line, want := range map[string]bool{
			"echo > " + dir + "/null":        true,
			"head -c1 " + dir + "/zero":      true,
			"echo > " + dir + "/zero":        false,
			"head -c1 " + dir + "/full":      false,
			"mknod " + dir + "/made c 1 7":   true,
			"mknod " + dir + "/disk$$ b 7 0": false,
		} {
			err := enter(t, g, line+" >/dev/null 2>&1").Wait()
			if (err == nil) != want {
				t.Errorf("%s: %q: %v, want success %v", what, line, err, want)
			}
			_ = os.Remove(dir + "/made")
		}
	}
	try("as the host has it")
	if g.h.Mode != Hybrid {
		return
	}
	if err := devicesV1(g.dir("devices"), []specs.LinuxDeviceCgroup{{Allow: true, Access: "rwm"}}); err != nil {
		t.Fatal(err)
	}
	if err := devicesV2(g.h.V2+g.Path, rules); err != nil {
		t.Fatal(err)
	}
	try("by BPF alone")
}

// TestDevicesInterrupted: a signal that comes while the kernel verifies the program, as Go's runtime sends
// them to take turns, does not fail it.
func TestDevicesInterrupted(t *testing.T) {
	g := group(t)
	if g.h.V2 == "" {
		t.Skip("SKIPPED: this host has no cgroup v2")
	}
	many := rules[:1:1]
	for i := range 60 { // long enough for the verifier to be met at work
		minor := int64(i)
		many = append(many, specs.LinuxDeviceCgroup{Allow: true, Type: "c", Major: &minor, Minor: &minor, Access: "r"})
	}
	tid, stop := make(chan int), make(chan struct{})
	defer close(stop)
	go func() {
		to := <-tid
		for {
			select {
			case <-stop:
				return
			default:
				_ = unix.Tgkill(unix.Getpid(), to, unix.SIGURG)
			}
		}
	}()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	tid <- unix.Gettid()
	for range 3 {
		if err := devicesV2(g.h.V2+g.Path, many); err != nil {
			t.Fatal(err)
		}
	}
}

// TestDeviceProgram walks the program against the rules themselves, for every kind of access.
func TestDeviceProgram(t *testing.T) {
	p, err := deviceProgram(rules)
	if err != nil {
		t.Fatal(err)
	}
	allowed := func(kind uint32, access, major, minor uint32) bool {
		for i := len(rules) - 1; i >= 0; i-- {
			r := rules[i]
			mask := uint32(0)
			for _, a := range r.Access {
				mask |= map[rune]uint32{'m': accMknod, 'r': accRead, 'w': accWrite}[a]
			}
			switch {
			case r.Type == "c" && kind != devChar, r.Type == "b" && kind != devBlock,
				r.Major != nil && uint32(*r.Major) != major, r.Minor != nil && uint32(*r.Minor) != minor,
				r.Allow && access&^mask != 0, !r.Allow && access&mask == 0:
				continue
			}
			return r.Allow
		}
		return false
	}
	for _, kind := range []uint32{devBlock, devChar} {
		for access := uint32(1); access < 8; access++ {
			for _, major := range []uint32{0, 1, 2, 136} {
				for _, minor := range []uint32{0, 3, 5, 7} {
					got := interpret(t, p, access<<16|kind, major, minor) == 1
					if want := allowed(kind, access, major, minor); got != want {
						t.Errorf("type %d access %d device %d:%d: %v, want %v", kind, access, major, minor, got, want)
					}
				}
			}
		}
	}
}

// interpret runs the few instructions that deviceProgram uses.
func interpret(t *testing.T, p []insn, words ...uint32) int64 {
	t.Helper()
	var r [11]int64
	for pc := 0; pc < len(p); pc++ {
		i := p[pc]
		dst, src := i.reg&15, i.reg>>4
		jump := false
		switch i.op {
		case bpfLdxW:
			r[dst] = int64(words[i.off/4])
		case bpfMovK:
			r[dst] = int64(i.imm)
		case bpfMovX:
			r[dst] = r[src]
		case bpfAndK:
			r[dst] &= int64(i.imm)
		case bpfRshK:
			r[dst] = int64(uint64(r[dst]) >> i.imm)
		case bpfJneK:
			jump = r[dst] != int64(i.imm)
		case bpfJeqK:
			jump = r[dst] == int64(i.imm)
		case bpfJneX:
			jump = r[dst] != r[src]
		case bpfExit:
			return r[0]
		default:
			t.Fatalf("opcode %#x", i.op)
		}
		if jump {
			pc += int(i.off)
		}
	}
	t.Fatal("the program does not end")
	return 0
}

func BenchmarkCreate(b *testing.B) {
	limit := int64(64 << 20)
	for i := 0; b.Loop(); i++ {
		g, err := Open(fmt.Sprintf("/gantry-bench-%d/%d", os.Getpid(), i))
		if err != nil {
			b.Fatal(err)
		}
		if err := g.Create(); err != nil {
			b.Fatal(err)
		}
		if err := g.Limit(&specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &limit}}); err != nil {
			b.Fatal(err)
		}
		if err := g.Devices(rules); err != nil {
			b.Fatal(err)
		}
		if err := g.Remove(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
	above, _ := Open(fmt.Sprintf("/gantry-bench-%d", os.Getpid()))
	_ = above.RemoveIfEmpty()
}

// TestCreateTogether: groups below one that nobody has made yet are usable, whoever makes it.
func TestCreateTogether(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("SKIPPED: making cgroups needs root")
	}
	top := fmt.Sprintf("/gantry-together-%d", os.Getpid())
	above, err := Open(top)
	if err != nil {
		t.Fatal(err)
	}
	for range 10 {
		var wg sync.WaitGroup
		for i := range 8 {
			wg.Go(func() {
				g, err := Open(fmt.Sprintf("%s/%d", top, i))
				if err == nil {
					err = g.Create()
				}
				if err != nil {
					t.Error(err)
					return
				}
				if dir := g.dir("cpuset"); dir != "" {
					for _, name := range []string{"cpuset.cpus", "cpuset.mems"} {
						if raw, err := os.ReadFile(filepath.Join(dir, name)); err != nil || len(trim(raw)) == 0 {
							t.Errorf("%s is empty: %v", name, err)
						}
					}
				}
			})
		}
		wg.Wait()
		if err := above.Remove(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}
