package escape

import (
	"archive/tar"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/gantryd/gantry/internal/bundle"
	"github.com/gantryd/gantry/internal/frame"
	"github.com/gantryd/gantry/internal/insecure"
	"github.com/gantryd/gantry/test/harness"
)

// hostile pushes and pulls an image with the attacker in it.
func hostile(t *testing.T, m *harness.Machine) string {
	t.Helper()
	raw, err := os.ReadFile(attacker(t))
	must(t, err)
	busybox, err := os.ReadFile("/bin/busybox")
	must(t, err)
	entry := func(name, content string, mode int64) harness.Entry { return harness.File(name, content, mode) }
	grep := entry("bin/capable/grep", string(busybox), 0o755)
	grep.Header.PAXRecords = map[string]string{"SCHILY.xattr.security.capability": string(inheritable())}
	layer := harness.TarLayer(t, entry("bin/attack", string(raw), 0o755), entry("bin/evil", "#!/proc/self/exe\n", 0o755),
		harness.Dir("bin/capable"), grep, harness.Entry{Header: tar.Header{Typeflag: tar.TypeReg, Name: "bin/rootly", Mode: 0o4755}, Content: string(busybox)})
	r := m.Registry()
	config := v1.ImageConfig{Cmd: []string{"sh"}, Env: []string{"PATH=/bin"}}
	ref := r.Push("hostile", config, harness.BusyboxLayer(t), layer)
	m.Must("pull", "-q", ref)
	for _, at := range []string{"/proc", "/proc/sys", "/sys"} {
		config.Volumes = map[string]struct{}{at: {}}
		r.Push("volume"+strings.ReplaceAll(at, "/", "-"), config, harness.BusyboxLayer(t), layer)
	}
	return ref
}

// TestWhole attacks containers as users run them: with the daemon, its shims and the default settings.
func TestWhole(t *testing.T) {
	m := harness.New(t)
	image := hostile(t, m)
	m.Must("run", "-d", "--name", "long", image, "sleep", "1000")
	run := func(args ...string) []string { return append([]string{"run", "--rm"}, args...) }
	ways := map[string]func(args ...string) string{
		"run":  func(args ...string) string { return m.Must(append(run(image), args...)...) },
		"init": func(args ...string) string { return m.Must(append(run("--init", image), args...)...) },
		"exec": func(args ...string) string { return m.Must(append([]string{"exec", "long"}, args...)...) },
		"host": func(args ...string) string { return m.Must(append(run("--network", "host", image), args...)...) },
	}
	for name, do := range ways {
		t.Run(name, func(t *testing.T) {
			for i, l := range strings.Split(do("attack", "fds"), "\n") {
				if want := fmt.Sprintf("%d pipe:[", i); i > 2 || !strings.HasPrefix(l, want) && l != "0 /dev/null" {
					t.Errorf("descriptor %s", l)
				}
			}
			closed := []string{
				"attack", "write", "/proc/sys/kernel/core_pattern", "/proc/sysrq-trigger", "/proc/sys/kernel/modprobe", "/proc/sys/kernel/hotplug", "/sys/kernel/uevent_helper",
				"/proc/self/../sys/kernel/core_pattern", "/proc/1/root/proc/sysrq-trigger", "/proc/irq/default_smp_affinity", "/dev/mem", "/dev/kmsg", "/dev/vda", "/proc/kcore",
			}
			if out := do(closed...); out != "" {
				t.Errorf("can be written to: %s", out)
			}
			if out := do("sh", "-c", "cat /proc/keys /proc/kcore /proc/timer_list; find /sys/firmware /proc/scsi /proc/acpi -mindepth 1 2>/dev/null; mkdir /sys/fs/cgroup/x /sys/fs/cgroup/*/x 2>/dev/null && echo made; true"); out != "" {
				t.Errorf("masked, and shows: %s", out)
			}
			if out := do("attack", "cgroup"); out != "" {
				t.Errorf("CVE-2022-0492: %s", out)
			}
			if out := do("grep", "CapInh", "/proc/self/status"); strings.Trim(strings.TrimPrefix(out, "CapInh:"), "\t0") != "" {
				t.Errorf("CVE-2022-24769: %s", out)
			}
			if out := do("attack", "peek", "/etc/shadow"); out != "" && name != "init" {
				t.Errorf("what it sees of other processes: %s", out)
			}
			for _, l := range strings.Split(do("cat", "/proc/self/mountinfo"), "\n") {
				f := strings.Fields(l)
				if strings.Contains(f[4], m.Dir) || strings.Contains(f[3], m.Dir) && !slices.Contains([]string{"/etc/hosts", "/etc/hostname", "/etc/resolv.conf"}, f[4]) {
					t.Errorf("mount %s", l)
				}
			}
			if out := do("find", "/", "-xdev", "-name", "*.sock"); out != "" {
				t.Errorf("sockets: %s", out)
			}
		})
	}
	t.Run("inheritable", func(t *testing.T) {
		for _, args := range [][]string{run("-u", "user", image), {"exec", "-u", "user", "long"}} {
			if got := gained(m.Must(append(args, "/bin/capable/grep", "CapEff", "/proc/self/status")...)); got != "" {
				t.Errorf("%s: %s", args[0], got)
			}
		}
	})
	t.Run("executable", func(t *testing.T) { shimAsInterpreter(t, m, image) })
	t.Run("sockets", func(t *testing.T) { abstractSockets(t, m, image) })
	t.Run("volumes", func(t *testing.T) {
		for _, name := range []string{"volume-proc", "volume-proc-sys"} {
			ref := strings.Replace(image, "hostile", name, 1)
			m.Must("pull", "-q", ref)
			if r := m.Try(run(ref, "true")...); r.Code != 125 || !strings.Contains(r.Err, "/proc") {
				t.Errorf("CVE-2019-16884: %s: exit %d %s", name, r.Code, r.All())
			}
		}
	})
	t.Run("logs", func(t *testing.T) { forgedLog(t, m, image) })
	t.Run("directories", func(t *testing.T) { outsiders(t, m) })
}

// shimAsInterpreter (CVE-2019-5736, runc): a script whose interpreter is /proc/self/exe is executed by
// what starts it: the shim. Its program then runs in the container, which gets hold of it there.
func shimAsInterpreter(t *testing.T, m *harness.Machine, image string) {
	m.Must("run", "-d", "--name", "lurk", image, "attack", "shims")
	harness.Eventually(t, 10*time.Second, "the attacker waits", func() bool { return strings.Contains(m.Must("logs", "lurk"), "waiting") })
	r, w, err := os.Pipe() // it waits for its first words as long as this is open
	must(t, err)
	cmd := m.Command("exec", "-i", "lurk", "/bin/evil")
	cmd.Stdin = r
	ended := make(chan harness.Result, 1)
	go func() { ended <- m.Run(cmd) }()
	harness.Eventually(t, 25*time.Second, "the attacker is done", func() bool {
		return strings.Contains(m.Must("logs", "lurk"), "write:") || strings.Contains(m.Must("logs", "lurk"), "nobody")
	})
	must(t, w.Close())
	<-ended
	must(t, r.Close())
	if out := m.Must("logs", "lurk"); !strings.Contains(out, "found, write: read-only file system") {
		t.Errorf("escaped: %s", out)
	}
}

// abstractSockets (CVE-2020-15257, containerd): the shims' sockets had abstract names, which belong to a
// network namespace: a container with the host's could speak to them, and had the right user id. Here
// one of the test's own shows that such sockets are found and reached.
func abstractSockets(t *testing.T, m *harness.Machine, image string) {
	const name = "@gantry-escape-control"
	var l net.Listener
	var err error
	m.NS.Do(func() { l, err = net.Listen("unix", name) })
	must(t, err)
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_ = c.Close()
		}
	}()
	m.Must("run", "-d", "--name", "beside", "--network", "host", image, "sleep", "1000")
	out := m.Must("run", "--rm", "--network", "host", image, "attack", "sockets")
	if out != "reached "+name {
		t.Errorf("reached, besides the test's own: %q", out)
	}
}

// forgedLog: what a container writes that looks like blocks of a log is a line of its own, read from
// either end. The log itself is where no container reaches (CVE-2018-15664 was such a file that one did).
func forgedLog(t *testing.T, m *harness.Machine, image string) {
	m.Must("run", "--name", "honest", image, "sh", "-c", "echo forged; echo forged >&2")
	id := m.Must("inspect", "-f", "{{.Id}}", "honest")
	files, err := filepath.Glob(filepath.Join(m.Root, "containers", id, "log", "*"))
	if err != nil || len(files) != 1 {
		t.Fatalf("log of %s: %q %v", id, files, err)
	}
	raw, err := os.ReadFile(files[0])
	must(t, err)
	forged := string(raw) + "\nlast"
	if r := m.TryIn(strings.NewReader(forged), "run", "-i", "--name", "forger", image, "cat"); r.Code != 0 {
		t.Fatalf("%+v", r)
	}
	if r := m.Try("logs", "forger"); r.Out != forged || r.Err != "" {
		t.Errorf("its log is %q and %q", r.Out, r.Err)
	}
	if r := m.Try("logs", "--tail", "1", "forger"); r.Out != "last" || r.Err != "" {
		t.Errorf("its last line is %q and %q", r.Out, r.Err)
	}
}

// outsiders (CVE-2021-41091, Docker; CVE-2021-41103 and CVE-2024-25621, containerd): images lay open to
// the host's users, with setuid programs of an attacker's making in them.
func outsiders(t *testing.T, m *harness.Machine) {
	found := ""
	must(t, filepath.WalkDir(m.Root, func(p string, _ fs.DirEntry, err error) error {
		if err == nil && filepath.Base(p) == "rootly" {
			found = p
		}
		return nil
	}))
	if found == "" {
		t.Fatal("the setuid program of the image is nowhere")
	}
	asNobody := func(name string, args ...string) (string, error) {
		cmd := exec.Command(name, args...)
		cmd.Dir = "/"
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	if out, err := asNobody(found, "id"); err == nil {
		t.Errorf("a user of the host executes a setuid program of an image: %s", out)
	}
	for _, dir := range []string{m.Root, m.State} {
		out, _ := asNobody("find", dir, "-type", "f", "-readable")
		for l := range strings.Lines(out) {
			if !strings.Contains(l, "Permission denied") {
				t.Errorf("a user of the host can read %s", l)
			}
		}
	}
}

const strangerName = "gantry-escape-stranger"

// stranger greets a shim, as somebody who is not root, and says whether it was let in.
func stranger(path string) {
	c, err := net.Dial("unix", path)
	if err != nil {
		fmt.Print(err)
		return
	}
	_ = c.SetDeadline(time.Now().Add(5 * time.Second))
	greeting := frame.Greeting{NoStdin: true}
	if _, err := c.Write(frame.Append(nil, frame.Hello, greeting.Marshal())); err != nil {
		fmt.Print("turned away")
		return
	}
	if kind, _, err := frame.NewReader(c).Next(); err == nil && kind == frame.Welcome {
		fmt.Print("let in")
		return
	}
	fmt.Print("turned away")
}

// TestStranger (CVE-2020-15257, containerd): who comes to a shim's socket, although he is not root,
// is asked who he is, whatever the modes on the way.
func TestStranger(t *testing.T) {
	attack := func(options ...harness.Option) string {
		m := harness.New(t, options...)
		image := hostile(t, m)
		id := m.Must("run", "-d", image, "sleep", "1000")
		var path string
		must(t, filepath.WalkDir(m.State, func(p string, d fs.DirEntry, err error) error {
			if err == nil && d.Name() == bundle.IOFile && strings.Contains(p, id) {
				path = p
			}
			return nil
		}))
		for p := filepath.Dir(path); p != "/"; p = filepath.Dir(p) {
			st, err := os.Stat(p)
			must(t, err, os.Chmod(p, st.Mode().Perm()|0o711))
		}
		must(t, os.Chmod(path, 0o666))
		cmd := exec.Command("/proc/self/exe")
		cmd.Args = []string{strangerName, path}
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		out, err := cmd.CombinedOutput()
		must(t, err)
		return string(out)
	}
	if got := attack(); got != "turned away" {
		t.Errorf("a stranger: %s", got)
	}
	if insecure.Built {
		without := func(m *harness.Machine) { m.Bin = harness.Programs(t, "insecure") }
		if got := attack(without, harness.Env("GANTRY_INSECURE="+string(insecure.Peer))); got != "let in" {
			t.Errorf("the attack fails without the guard too: %s", got)
		}
	}
}

// TestRelease: what is built without the tag has no switch.
func TestRelease(t *testing.T) {
	for tags, want := range map[string]bool{"": false, "insecure": true} {
		bin := harness.Programs(t, tags)
		for _, name := range []string{"gantryd", "gantry-shim"} {
			raw, err := os.ReadFile(filepath.Join(bin, name))
			must(t, err)
			if got := strings.Contains(string(raw), "GANTRY_INSECURE"); got != want {
				t.Errorf("%s, built with %q: guards can be taken out: %v", name, tags, got)
			}
		}
	}
}
