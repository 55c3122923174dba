package seccomp

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// TestLibseccomp compares with libseccomp.
func TestLibseccomp(t *testing.T) {
	t.Parallel()
	if runtime.GOARCH != "amd64" {
		t.Skip("SKIPPED: the comparison with libseccomp is written for amd64")
	}
	exe := filepath.Join(t.TempDir(), "libseccomp")
	if out, err := exec.Command("gcc", "-o", exe, "testdata/libseccomp.c", "-l:libseccomp.so.2").CombinedOutput(); err != nil {
		t.Fatalf(`no gcc, or no libseccomp.so.2 to compare with ("make setup" installs libseccomp2): %v %s`, err, out)
	}
	ops := map[specs.LinuxSeccompOperator]int{
		specs.OpNotEqual: 1, specs.OpLessThan: 2, specs.OpLessEqual: 3, specs.OpEqualTo: 4,
		specs.OpGreaterEqual: 5, specs.OpGreaterThan: 6, specs.OpMaskedEqual: 7,
	}
	for name, p := range profiles(t) {
		// Where conditional rules overlap libseccomp's order is its own; and it has its own idea of a
		// profile with no rule it knows.
		if name == "every operator" || name == "far" {
			continue
		}
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var in bytes.Buffer
			def, _ := action(p.DefaultAction, p.DefaultErrnoRet)
			fmt.Fprintf(&in, "D %x\nA %x\nA %x\n", def, uint32(unix.AUDIT_ARCH_I386), uint32(0x4000003e)) // X86, X32
			for _, s := range p.Syscalls {
				ret, _ := action(s.Action, s.ErrnoRet)
				if ret == def {
					continue
				}
				for _, n := range s.Names {
					if !slices.ContainsFunc(calls, func(c call) bool { return c.name == n }) {
						continue
					}
					fmt.Fprintf(&in, "R %x %s", ret, n)
					for _, a := range s.Args {
						fmt.Fprintf(&in, " %x %x %x %x", a.Index, ops[a.Op], a.Value, a.ValueTwo)
					}
					in.WriteByte('\n')
				}
			}
			cmd := exec.Command(exe)
			cmd.Stdin, cmd.Stderr = &in, os.Stderr
			out, err := cmd.Output()
			if err != nil {
				t.Fatal(err)
			}
			theirs, err := Parse(out)
			if err != nil {
				t.Fatal(err)
			}
			set, err := translate(p)
			if err != nil {
				t.Fatal(err)
			}
			set.enosys = false // that is runc's, not libseccomp's
			ours, err := assemble([]abi{x8664, x86, x32}, set)
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("%d instructions; libseccomp: %d", len(ours), len(theirs))
			theyKnow := known(t, exe)
			for _, a := range []abi{x8664, x86, x32} {
				wordsOf(t, p, a).inputs(func(d data) {
					if a == x86 && (d.nr == 102 || d.nr == 117) || !theyKnow(d) {
						return // the multiplexed calls differ on purpose; the rest it is too old to know
					}
					if got, want := run(ours, d), run(theirs, d); got != want {
						t.Fatalf("table %d, call %d, %#x: %#x, libseccomp says %#x", a, d.nr, d.args, got, want)
					}
				})
			}
		})
	}
}

// known says which calls the installed libseccomp knows, or that nobody does.
func known(t *testing.T, exe string) func(data) bool {
	t.Helper()
	in := bytes.NewBufferString(fmt.Sprintf("D 0\nA %x\nA %x\n", uint32(unix.AUDIT_ARCH_I386), uint32(0x4000003e)))
	named := map[[2]uint32]bool{}
	for _, c := range calls {
		fmt.Fprintf(in, "R 7fff0000 %s\n", c.name)
		for _, a := range []abi{x8664, x86, x32} {
			named[[2]uint32{audit[a], uint32(c.number[a])}] = true
		}
	}
	cmd := exec.Command(exe)
	cmd.Stdin = in
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	p, err := Parse(out)
	if err != nil {
		t.Fatal(err)
	}
	return func(d data) bool {
		return !named[[2]uint32{d.arch, d.nr}] || run(p, data{nr: d.nr, arch: d.arch}) == unix.SECCOMP_RET_ALLOW
	}
}
