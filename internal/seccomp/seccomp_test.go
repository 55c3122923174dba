package seccomp

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// TestCompile compares compiled profiles with what their words say, for all tables, all calls and
// arguments around every value that the profile names.
func TestCompile(t *testing.T) {
	t.Parallel()
	for name, p := range profiles(t) {
		for _, list := range [][]abi{{x8664, x86, x32}, {arm64, arm}, {x8664}} {
			t.Run(fmt.Sprint(name, list), func(t *testing.T) {
				t.Parallel()
				set, err := translate(p)
				if err != nil {
					t.Fatal(err)
				}
				prog, err := assemble(list, set)
				if err != nil {
					t.Fatal(err)
				}
				sound(t, prog)
				for _, a := range list {
					w := wordsOf(t, p, a)
					w.inputs(func(d data) {
						if got, want := run(prog, d), w.naive(d); got != want {
							t.Fatalf("table %d, call %d, %#x: %#x, the profile says %#x", a, d.nr, d.args, got, want)
						}
					})
				}
				if got := run(prog, data{arch: unix.AUDIT_ARCH_S390X}); got != unix.SECCOMP_RET_KILL_PROCESS {
					t.Errorf("another architecture: %#x", got)
				}
				if !slices.Contains(list, x32) && list[0] == x8664 {
					if got := run(prog, data{nr: x32Bit | 1, arch: unix.AUDIT_ARCH_X86_64}); got != unix.SECCOMP_RET_KILL_PROCESS {
						t.Errorf("x32, which the profile does not name: %#x", got)
					}
				}
			})
		}
	}
}

func TestRefused(t *testing.T) {
	t.Parallel()
	errno, wide := uint(4096), uint(65536)
	sys := func(s specs.LinuxSyscall) *specs.LinuxSeccomp {
		return &specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Syscalls: []specs.LinuxSyscall{s}}
	}
	for want, p := range map[string]*specs.LinuxSeccomp{
		`action "" is unknown`:                         {},
		`action "SCMP_ACT_X" is unknown`:               {DefaultAction: "SCMP_ACT_X"},
		`architecture "SCMP_ARCH_Z80" is unknown`:      {DefaultAction: specs.ActAllow, Architectures: []specs.Arch{"SCMP_ARCH_Z80"}},
		`flag "NOFLAG" is unknown`:                     {DefaultAction: specs.ActAllow, Flags: []specs.LinuxSeccompFlag{"NOFLAG"}},
		`SCMP_ACT_NOTIFY cannot be the default action`: {DefaultAction: specs.ActNotify},
		`cannot be the action for write`:               sys(specs.LinuxSyscall{Names: []string{"write"}, Action: specs.ActNotify}),
		`errno 4096 of SCMP_ACT_ERRNO is above 4095`:   sys(specs.LinuxSyscall{Names: []string{"read"}, Action: specs.ActErrno, ErrnoRet: &errno}),
		`SCMP_ACT_ALLOW takes no errno (4096)`:         sys(specs.LinuxSyscall{Names: []string{"read"}, Action: specs.ActAllow, ErrnoRet: &errno}),
		`errno 65536 of SCMP_ACT_TRACE is above 65535`: sys(specs.LinuxSyscall{Names: []string{"read"}, Action: specs.ActTrace, ErrnoRet: &wide}),
		`SCMP_ACT_KILL takes no errno`:                 {DefaultAction: specs.ActKill, DefaultErrnoRet: &errno},
		`there is none`:                                nil,
		`use fewer rules`:                              tooLong(),
		`operator "SCMP_CMP_X" is unknown`:             sys(specs.LinuxSyscall{Names: []string{"read"}, Action: specs.ActErrno, Args: []specs.LinuxSeccompArg{{Op: "SCMP_CMP_X"}}}),
		`argument 6`:                                   sys(specs.LinuxSyscall{Names: []string{"read"}, Action: specs.ActErrno, Args: []specs.LinuxSeccompArg{{Index: 6, Op: specs.OpEqualTo}}}),
		`names an empty call`:                          sys(specs.LinuxSyscall{Names: []string{""}, Action: specs.ActErrno}),
	} {
		if _, err := Compile(p); !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), want) {
			t.Errorf("want %q, got %v", want, err)
		}
	}
}

// tooLong is a profile that cannot be expressed in the instructions that the kernel takes.
func tooLong() *specs.LinuxSeccomp {
	p := &specs.LinuxSeccomp{DefaultAction: specs.ActErrno}
	for i := range uint64(1000) {
		p.Syscalls = append(p.Syscalls, specs.LinuxSyscall{
			Names: []string{"ioctl"}, Action: specs.ActAllow,
			Args: []specs.LinuxSeccompArg{{Index: 1, Value: i, Op: specs.OpEqualTo}},
		})
	}
	return p
}

func TestTranslate(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		p      specs.LinuxSeccomp
		flags  uint32
		notify bool
	}{
		"no flags": {specs.LinuxSeccomp{DefaultAction: specs.ActAllow}, unix.SECCOMP_FILTER_FLAG_SPEC_ALLOW, false},
		"all flags": {specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Flags: []specs.LinuxSeccompFlag{
			specs.LinuxSeccompFlagLog, specs.LinuxSeccompFlagSpecAllow, specs.LinuxSeccompFlagWaitKillableRecv, "SECCOMP_FILTER_FLAG_TSYNC",
		}}, unix.SECCOMP_FILTER_FLAG_LOG | unix.SECCOMP_FILTER_FLAG_SPEC_ALLOW | unix.SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV, false},
		"log only": {specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Flags: []specs.LinuxSeccompFlag{specs.LinuxSeccompFlagLog}}, unix.SECCOMP_FILTER_FLAG_LOG, false},
		"notify": {specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Syscalls: []specs.LinuxSyscall{
			{Names: []string{"mkdir"}, Action: specs.ActNotify},
		}}, unix.SECCOMP_FILTER_FLAG_SPEC_ALLOW, true},
	} {
		f, err := Translate(&c.p)
		if err != nil {
			t.Errorf("%s: %v", name, err)
		} else if f.Flags != c.flags || f.Notify != c.notify {
			t.Errorf("%s: flags %#x, notify %t", name, f.Flags, f.Notify)
		}
	}
}

func TestMachines(t *testing.T) {
	t.Parallel()
	all := append(archs[:], foreign[:]...)
	for goarch, want := range map[string][]abi{"amd64": {x8664, x86, x32}, "arm64": {arm64, arm}} {
		if got, err := wantedOn(goarch, all); err != nil || !slices.Equal(got, want) {
			t.Errorf("%s: %v, %v", goarch, got, err)
		}
		if got, err := wantedOn(goarch, nil); err != nil || !slices.Equal(got, want[:1]) {
			t.Errorf("%s alone: %v, %v", goarch, got, err)
		}
	}
	if _, err := wantedOn("s390x", nil); !errdefs.IsNotImplemented(err) {
		t.Errorf("s390x: %v", err)
	}
}

func TestParse(t *testing.T) {
	t.Parallel()
	b, _, err := Default(docker)
	if err != nil {
		t.Fatal(err)
	}
	p, err := Parse(b)
	if err != nil || !bytes.Equal(encode(p), b) {
		t.Fatalf("does not come back: %v", err)
	}
	for _, n := range []int{0, 7, len(b) - 1, (maxInstructions + 1) * instruction} {
		if _, err := Parse(make([]byte, n)); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%d bytes: %v", n, err)
		}
	}
}

// TestSize holds the program of the default profile to what makes it cheap.
func TestSize(t *testing.T) {
	t.Parallel()
	b, _, err := Default(docker)
	if err != nil {
		t.Fatal(err)
	}
	if n := len(b) / instruction; n > 450 {
		t.Errorf("default profile: %d instructions", n)
	} else {
		t.Logf("default profile: %d instructions", n)
	}
}

// TestTable holds the generated table to the module version that is built with.
func TestTable(t *testing.T) {
	t.Parallel()
	if !slices.IsSortedFunc(calls, func(a, b call) int { return strings.Compare(a.name, b.name) }) {
		t.Error("calls are not sorted")
	}
	if _, err := exec.LookPath("go"); err != nil {
		t.Skipf("SKIPPED: no go command to generate the table with: %v", err)
	}
	fresh := filepath.Join(t.TempDir(), "table.go")
	if out, err := exec.Command("go", "run", "gentable.go", "-o", fresh).CombinedOutput(); err != nil {
		t.Skipf("SKIPPED: the source of golang.org/x/sys is not here: %v: %s", err, out)
	}
	want, err := os.ReadFile(fresh)
	if err != nil {
		t.Fatal(err)
	}
	have, err := os.ReadFile("table.go")
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(have, want) {
		t.Error("table.go is not of this version of golang.org/x/sys: go generate ./internal/seccomp")
	}
}

func FuzzParse(f *testing.F) {
	b, _, err := Default(docker)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add(b[:instruction])
	f.Fuzz(func(t *testing.T, b []byte) {
		if p, err := Parse(b); err == nil && !bytes.Equal(encode(p), b) {
			t.Error("parsed, and is another in bytes")
		}
	})
}

func FuzzCompile(f *testing.F) {
	for _, p := range profiles(f) {
		b, err := json.Marshal(p)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b, uint32(1), uint64(1))
	}
	f.Fuzz(func(t *testing.T, b []byte, nr uint32, arg uint64) {
		var p specs.LinuxSeccomp
		if json.Unmarshal(b, &p) != nil {
			return
		}
		set, err := translate(&p)
		if err != nil {
			return
		}
		for _, list := range [][]abi{{x8664, x86, x32}, {arm64, arm}} {
			prog, err := assemble(list, set)
			if err != nil {
				continue
			}
			sound(t, prog)
			for _, a := range list {
				d := data{nr: a.base() | nr&0x3fffffff, arch: audit[a], args: [6]uint64{arg, arg, arg, arg, arg, arg}}
				if got, want := run(prog, d), wordsOf(t, &p, a).naive(d); got != want {
					t.Errorf("table %d, call %d(%#x): %#x, the profile says %#x", a, d.nr, arg, got, want)
				}
			}
		}
	})
}
