package unpack

import (
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"slices"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

const attacker = "gantry-attack"

// TestMain makes this program the unpacker when Run starts it, and an attacker in the unpacker's place when TestWalls does.
func TestMain(m *testing.M) {
	Main()
	if os.Args[0] == attacker {
		attack()
	}
	os.Exit(m.Run())
}

// attack does, where the unpacker would unpack, what one that was taken over might try, and answers what it achieved.
func attack() {
	var job Job
	if err := json.NewDecoder(os.NewFile(jobFD, "job")).Decode(&job); err != nil {
		panic(err)
	}
	if err := confine(job.Mounts); err != nil {
		panic(err)
	}
	var did []string
	try := func(what string, err error) {
		if err == nil {
			did = append(did, what)
		}
	}
	open := func(p string) error { _, err := os.ReadFile(p); return err }
	raw := func(nr uintptr, args ...uintptr) error {
		args = append(args, 0, 0, 0, 0, 0, 0)
		if _, _, errno := unix.RawSyscall6(nr, args[0], args[1], args[2], args[3], args[4], args[5]); errno != 0 {
			return errno
		}
		return nil
	}
	try("write inside", os.WriteFile("/inside", nil, 0o600))
	try("read /etc/passwd", open("/etc/passwd"))
	try("climb", open("../../../../../../etc/passwd"))
	try("read by /proc", open("/proc/1/root/etc/passwd"))
	try("mount", unix.Mount("proc", "/", "proc", 0, ""))
	try("remount", unix.Mount("", "/", "", unix.MS_REMOUNT|unix.MS_BIND, ""))
	try("unmount", unix.Unmount("/", unix.MNT_DETACH))
	try("chroot", unix.Chroot("/"))
	try("unshare", unix.Unshare(unix.CLONE_NEWUSER))
	try("setns", unix.Setns(0, 0))
	try("socket", func() error { _, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0); return err }())
	try("fsopen", func() error { _, err := unix.Fsopen("tmpfs", 0); return err }())
	try("handle", func() error {
		_, err := unix.OpenByHandleAt(unix.AT_FDCWD, unix.NewFileHandle(1, make([]byte, 8)), 0)
		return notJust(err, unix.EPERM)
	}())
	try("exec", exec.Command("/bin/true").Run())
	try("fork", raw(unix.SYS_CLONE, uintptr(syscall.SIGCHLD)))
	try("ptrace", notJust(raw(unix.SYS_PTRACE, unix.PTRACE_ATTACH, 1), unix.EPERM))
	try("bpf", notJust(raw(unix.SYS_BPF, 0, 0, 0), unix.EPERM))
	try("kexec", notJust(raw(unix.SYS_KEXEC_LOAD), unix.EPERM))
	try("keyctl", notJust(raw(unix.SYS_KEYCTL, 0, 0), unix.EPERM))
	try("use a device", func() error {
		if err := unix.Mknod("/zero", unix.S_IFCHR|0o600, int(unix.Mkdev(1, 5))); err != nil {
			return err
		}
		return open1("/zero")
	}())
	if err := json.NewEncoder(os.NewFile(answerFD, "answer")).Encode(did); err != nil {
		panic(err)
	}
	os.Exit(0)
}

// notJust is nil unless err is want: any other error means that the call got past the filter.
func notJust(err, want error) error {
	if errors.Is(err, want) {
		return err
	}
	return nil
}

func open1(p string) error {
	f, err := os.Open(p)
	if err == nil {
		f.Close()
	}
	return err
}

// TestWalls: of all that an attacker in the unpacker tries, only writing into the layer works.
func TestWalls(t *testing.T) {
	root(t)
	c, err := newChild(t.Context(), Job{Mounts: bind(t.TempDir())})
	if err != nil {
		t.Fatal(err)
	}
	defer c.close()
	c.cmd.Args = []string{attacker}
	ended := c.start()
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	c.afterStart()
	var did []string
	if err := json.NewDecoder(c.answerR).Decode(&did); err != nil {
		t.Fatal(err, c.words())
	}
	if err := <-ended; err != nil {
		t.Fatal(err, c.words())
	}
	if !slices.Equal(did, []string{"write inside"}) {
		t.Fatalf("the attacker could: %q", did)
	}
}

// TestCapabilities: the child has what it needs and no more.
func TestCapabilities(t *testing.T) {
	root(t)
	ended := make(chan error)
	var out []byte
	onDisposableThread(func() {
		err := renounce()
		if err == nil {
			out, err = exec.Command("/bin/cat", "/proc/self/status").Output()
		}
		ended <- err
	})
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	want := uint64(0)
	for _, c := range keep {
		want |= 1 << c
	}
	for _, set := range []string{"CapPrm", "CapEff", "CapBnd"} {
		if got := field(t, out, set); got&^want != 0 {
			t.Errorf("%s is %x, wanted at most %x", set, got, want)
		}
	}
	if field(t, out, "NoNewPrivs") != 1 {
		t.Error("new privileges can be had")
	}
}
