package seccomp

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// TestMain is also the child of TestKernel: it loads the filter from stdin and probes it.
func TestMain(m *testing.M) {
	if os.Getenv("GANTRY_SECCOMP_CHILD") != "" {
		probe()
		return
	}
	os.Exit(m.Run())
}

type asked struct {
	Name string
	NR   uintptr
	Args [3]uintptr
}

var probes = []asked{
	{"getpid", unix.SYS_GETPID, [3]uintptr{}},
	{"keyctl", unix.SYS_KEYCTL, [3]uintptr{0, 0, 0}},
	{"bpf", unix.SYS_BPF, [3]uintptr{0, 0, 0}},
	{"unshare", unix.SYS_UNSHARE, [3]uintptr{unix.CLONE_NEWUTS, 0, 0}},
	{"mount", unix.SYS_MOUNT, [3]uintptr{0, 0, 0}},
	{"socket(AF_VSOCK)", unix.SYS_SOCKET, [3]uintptr{unix.AF_VSOCK, unix.SOCK_STREAM, 0}},
	{"socket(AF_ALG)", unix.SYS_SOCKET, [3]uintptr{unix.AF_ALG, unix.SOCK_SEQPACKET, 0}},
	{"socket(AF_UNIX)", unix.SYS_SOCKET, [3]uintptr{unix.AF_UNIX, unix.SOCK_STREAM, 0}},
	{"personality(0xffffffff)", unix.SYS_PERSONALITY, [3]uintptr{0xffffffff, 0, 0}},
	{"personality(1)", unix.SYS_PERSONALITY, [3]uintptr{1, 0, 0}},
	{"clone3", unix.SYS_CLONE3, [3]uintptr{0, 0, 0}},
	{"clone(NEWUSER)", unix.SYS_CLONE, [3]uintptr{unix.CLONE_NEWUSER | unix.CLONE_THREAD, 0, 0}}, // impossible flags: nothing is cloned
	{"future", 600, [3]uintptr{}},
	{"far future", 100000, [3]uintptr{}},
	{"read", unix.SYS_READ, [3]uintptr{^uintptr(0), 0, 0}},
	{"write", unix.SYS_WRITE, [3]uintptr{^uintptr(0), 0, 0}},
	{"unshare(NEWUSER)", unix.SYS_UNSHARE, [3]uintptr{unix.CLONE_NEWUSER, 0, 0}},
	{"x32 getpid", x32Bit | unix.SYS_GETPID, [3]uintptr{}},
}

func probe() {
	runtime.LockOSThread()
	var b []byte
	if err := json.NewDecoder(os.Stdin).Decode(&b); err != nil {
		panic(err)
	}
	f, err := Parse(b)
	if err != nil {
		panic(err)
	}
	fprog := unix.SockFprog{Len: uint16(len(f)), Filter: &f[0]}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		panic(err)
	}
	if _, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, uintptr(DefaultFlags), uintptr(unsafe.Pointer(&fprog))); errno != 0 {
		panic(errno)
	}
	for _, p := range probes {
		_, _, errno := unix.RawSyscall(p.NR, p.Args[0], p.Args[1], p.Args[2])
		fmt.Printf("%s=%d\n", p.Name, errno)
	}
}

// TestKernel loads the default filter into a child and asks the kernel.
func TestKernel(t *testing.T) {
	t.Parallel()
	b, _, err := Default(docker)
	if err != nil {
		t.Fatal(err)
	}
	in, _ := json.Marshal(b)
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe)
	cmd.Env = []string{"GANTRY_SECCOMP_CHILD=1"}
	cmd.Stdin, cmd.Stderr = strings.NewReader(string(in)), os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	const (
		perm   = uint32(unix.EPERM)
		enosys = uint32(unix.ENOSYS)
	)
	want := map[string]uint32{
		"getpid": 0, "keyctl": perm, "bpf": perm, "unshare": perm, "mount": perm, "socket(AF_VSOCK)": perm,
		"socket(AF_ALG)": perm, "socket(AF_UNIX)": 0, "personality(0xffffffff)": 0, "personality(1)": perm,
		"clone3": enosys, "clone(NEWUSER)": perm, "future": enosys,
		"far future": enosys, "read": uint32(unix.EBADF), "write": uint32(unix.EBADF), "unshare(NEWUSER)": perm,
	}
	for l := range strings.Lines(string(out)) {
		name, got, _ := strings.Cut(strings.TrimSpace(l), "=")
		if w, ok := want[name]; ok && got != fmt.Sprint(w) {
			t.Errorf("%s: errno %s, want %d", name, got, w)
		}
		delete(want, name)
	}
	for name := range want {
		t.Errorf("%s: no answer", name)
	}
}

func BenchmarkCompile(b *testing.B) {
	p, err := DefaultProfile(docker)
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if _, err := Compile(p); err != nil {
			b.Fatal(err)
		}
	}
}
