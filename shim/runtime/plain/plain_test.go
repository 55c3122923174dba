package plain

import (
	"context"
	"os"
	osexec "os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/internal/seccomp"
	"github.com/gantryd/gantry/shim/runtime"
)

func base(t testing.TB, id string, args ...string) *runtime.Config {
	root := filepath.Join(t.TempDir(), "root")
	for _, d := range []string{"bin", "etc", "proc", "sys", "dev", "tmp"} {
		os.MkdirAll(filepath.Join(root, d), 0o755)
	}
	osexec.Command("cp", "/bin/busybox", filepath.Join(root, "bin")).Run()
	osexec.Command("chroot", root, "/bin/busybox", "--install", "-s", "/bin").Run()
	caps := []string{"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_KILL", "CAP_SETUID", "CAP_SETGID", "CAP_MKNOD"}
	filter, _, err := seccomp.Default(caps)
	if err != nil {
		t.Fatal(err)
	}
	attach := filepath.Join(t.TempDir(), "rootfs")
	return &runtime.Config{
		ID: id, Seccomp: filter, Rootfs: []runtime.Mount{{Type: "bind", Source: root, Options: []string{"rbind", "rw"}}},
		Spec: &specs.Spec{
			Version: "1.1.0", Hostname: "box", Root: &specs.Root{Path: attach},
			Process: &specs.Process{Args: args, Cwd: "/", Env: []string{"PATH=/bin"}, Capabilities: &specs.LinuxCapabilities{Bounding: caps, Effective: caps, Permitted: caps}},
			Mounts: []specs.Mount{
				{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
				{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
				{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
				{Destination: "/dev/shm", Type: "tmpfs", Source: "shm", Options: []string{"nosuid", "noexec", "nodev", "mode=1777", "size=67108864"}},
				{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}},
				{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", "ro"}},
				{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: []string{"nosuid", "noexec", "nodev", "relatime", "ro"}},
			},
			Linux: &specs.Linux{
				CgroupsPath:   "/gantry-plain/" + id,
				Namespaces:    []specs.LinuxNamespace{{Type: "pid"}, {Type: "ipc"}, {Type: "uts"}, {Type: "mount"}, {Type: "cgroup"}, {Type: "network"}},
				MaskedPaths:   []string{"/proc/kcore", "/proc/keys", "/proc/scsi", "/proc/acpi", "/sys/firmware"},
				ReadonlyPaths: []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"},
			},
		},
	}
}

func TestRun(t *testing.T) {
	for i, c := range []struct{ script, want string }{
		{"echo hi; echo $$; hostname", "hi\n1\nbox\n"},
		{"grep Cap /proc/self/status | head -3; grep Seccomp: /proc/self/status; ls -la /proc/self/fd; mount; ls /sys/fs/cgroup; cat /proc/1/cgroup; echo h > /proc/sysrq-trigger; wc -c /proc/kcore; ls -la /dev", ""},
		{"id; pwd; tty; env", ""},
	} {
		r, w, _ := os.Pipe()
		cfg := base(t, "c"+string(rune('0'+i)), "sh", "-c", c.script)
		cfg.Stdio = runtime.Stdio{Out: w, Err: w}
		began := time.Now()
		k, err := (Runtime{}).Create(t.Context(), cfg)
		if err != nil {
			t.Fatal(err)
		}
		w.Close()
		created := time.Since(began)
		if err := k.Init().Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		started := time.Since(began)
		var b strings.Builder
		buf := make([]byte, 4096)
		for {
			n, err := r.Read(buf)
			b.Write(buf[:n])
			if err != nil {
				break
			}
		}
		var ws unix.WaitStatus
		unix.Wait4(k.Init().PID(), &ws, 0, nil)
		t.Logf("created %v started %v exit %d\n%s", created, started, ws.ExitStatus(), b.String())
		if c.want != "" && b.String() != c.want {
			t.Error("differs")
		}
		if err := k.Delete(context.Background()); err != nil {
			t.Fatal(err)
		}
	}
}
