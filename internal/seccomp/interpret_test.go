package seccomp

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// data is struct seccomp_data.
type data struct {
	nr, arch uint32
	args     [6]uint64
}

func (d data) word(at uint32) uint32 {
	switch {
	case at == dataNumber:
		return d.nr
	case at == dataArch:
		return d.arch
	case at >= dataArgs && at < dataArgs+48 && at%4 == 0:
		v := d.args[(at-dataArgs)/8]
		if at%8 == 4 {
			v >>= 32
		}
		return uint32(v)
	}
	panic(fmt.Sprintf("load of word %d", at))
}

// run is the kernel's part: it interprets a program, and panics where the kernel would refuse it.
func run(p []unix.SockFilter, d data) uint32 {
	var a uint32
	for pc := 0; ; pc++ {
		i := p[pc]
		take := func(c bool) {
			if c {
				pc += int(i.Jt)
			} else {
				pc += int(i.Jf)
			}
		}
		switch i.Code {
		case load:
			a = d.word(i.K)
		case and:
			a &= i.K
		case unix.BPF_ALU | unix.BPF_RSH | unix.BPF_K:
			a >>= i.K
		case jump:
			pc += int(i.K)
		case ifEq:
			take(a == i.K)
		case ifGt:
			take(a > i.K)
		case ifGe:
			take(a >= i.K)
		case leave:
			return i.K
		default:
			panic(fmt.Sprintf("instruction %d: code %#x", pc, i.Code))
		}
	}
}

// sound checks what the kernel checks before it takes a program (kernel/seccomp.c, net/core/filter.c).
func sound(t *testing.T, p []unix.SockFilter) {
	t.Helper()
	if len(p) == 0 || len(p) > maxInstructions {
		t.Fatalf("%d instructions", len(p))
	}
	for pc, i := range p {
		far := 0
		switch i.Code {
		case load:
			if i.K >= 64 || i.K%4 != 0 {
				t.Fatalf("instruction %d loads word %d", pc, i.K)
			}
		case jump:
			far = int(i.K)
		case ifEq, ifGt, ifGe:
			far = max(int(i.Jt), int(i.Jf))
		case and, leave:
		default:
			t.Fatalf("instruction %d: code %#x", pc, i.Code)
		}
		if pc+1+far >= len(p) && i.Code != leave {
			t.Fatalf("instruction %d leaves the program", pc)
		}
	}
}

// words is a profile by the numbers of one table, as its words say.
type words struct {
	a           abi
	def         uint32
	by          map[uint32][]line
	newest      uint32
	any, enosys bool
}

// line is one rule for one number.
type line struct {
	ret  uint32
	args []specs.LinuxSeccompArg
	or   bool
	sub  uint64 // of a multiplexed call; 0: it is none
}

func wordsOf(t *testing.T, p *specs.LinuxSeccomp, a abi) *words {
	t.Helper()
	ret := func(act specs.LinuxSeccompAction, errno *uint) uint32 {
		r, err := action(act, errno)
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	w := &words{a: a, def: ret(p.DefaultAction, p.DefaultErrnoRet), by: map[uint32][]line{}}
	switch w.def & unix.SECCOMP_RET_ACTION_FULL {
	case unix.SECCOMP_RET_ERRNO, unix.SECCOMP_RET_TRAP, unix.SECCOMP_RET_KILL_PROCESS, unix.SECCOMP_RET_KILL_THREAD:
		w.enosys = true
	}
	put := func(nr uint32, l line) {
		w.by[nr] = append(w.by[nr], l)
		if a != arm || nr < armPrivate {
			w.newest, w.any = max(w.newest, nr), true
		}
	}
	for _, s := range p.Syscalls {
		counts, or := map[uint]int{}, false
		for _, c := range s.Args {
			counts[c.Index]++
			or = or || counts[c.Index] > 1
		}
		r := ret(s.Action, s.ErrnoRet)
		for _, name := range s.Names {
			if nr, ok := number(a, name); ok {
				put(nr, line{ret: r, args: s.Args, or: or})
			}
			if through, sub, ok := multiplexed(a, name); ok {
				nr, _ := number(a, through)
				put(nr, line{ret: r, args: s.Args, sub: sub})
			}
		}
	}
	return w
}

// naive is the answer that the profile's words give, rule by rule.
func (w *words) naive(d data) uint32 {
	lines, named := w.by[d.nr]
	if !named && w.enosys && w.any && d.nr > w.newest && (w.a != arm || d.nr < armPrivate) {
		return unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)
	}
	for _, l := range lines {
		if l.ret != w.def && l.sub == 0 && len(l.args) == 0 {
			return l.ret
		}
	}
	for _, l := range lines {
		if l.ret != w.def && l.matches(d, w.a) {
			return l.ret
		}
	}
	return w.def
}

func (l line) matches(d data, a abi) bool {
	if l.sub != 0 {
		return d.args[0]&0xffffffff == l.sub && (len(l.args) == 0 || !permissive(l.ret))
	}
	matches := !l.or
	for _, c := range l.args {
		if l.or {
			matches = matches || holds(c, d, a)
		} else {
			matches = matches && holds(c, d, a)
		}
	}
	return matches
}

func holds(c specs.LinuxSeccompArg, d data, a abi) bool {
	v, want, two := d.args[c.Index], c.Value, c.ValueTwo
	if a.narrow() {
		v, want, two = v&0xffffffff, want&0xffffffff, two&0xffffffff
	}
	switch c.Op {
	case specs.OpEqualTo:
		return v == want
	case specs.OpNotEqual:
		return v != want
	case specs.OpLessThan:
		return v < want
	case specs.OpLessEqual:
		return v <= want
	case specs.OpGreaterThan:
		return v > want
	case specs.OpGreaterEqual:
		return v >= want
	case specs.OpMaskedEqual:
		return v&want == two
	}
	panic(c.Op)
}

var docker = []string{
	"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FSETID", "CAP_FOWNER", "CAP_MKNOD", "CAP_NET_RAW", "CAP_SETGID",
	"CAP_SETUID", "CAP_SETFCAP", "CAP_SETPCAP", "CAP_NET_BIND_SERVICE", "CAP_SYS_CHROOT", "CAP_KILL", "CAP_AUDIT_WRITE",
}

func profiles(t testing.TB) map[string]*specs.LinuxSeccomp {
	t.Helper()
	out := map[string]*specs.LinuxSeccomp{}
	for name, caps := range map[string][]string{"default": docker, "no caps": nil, "admin": append(slices.Clone(docker), "CAP_SYS_ADMIN", "CAP_BPF")} {
		p, err := DefaultProfile(caps)
		if err != nil {
			t.Fatal(err)
		}
		out[name] = p
	}
	errno := uint(unix.ENOENT)
	arg := func(i uint, op specs.LinuxSeccompOperator, a, b uint64) specs.LinuxSeccompArg {
		return specs.LinuxSeccompArg{Index: i, Op: op, Value: a, ValueTwo: b}
	}
	const big = 0x1_0000_0005
	out["allow all but"] = &specs.LinuxSeccomp{
		DefaultAction: specs.ActAllow, Architectures: []specs.Arch{specs.ArchX86, specs.ArchX32, specs.ArchARM},
		Syscalls: []specs.LinuxSyscall{
			{Names: []string{"socket", "ptrace", "breakpoint", "semop"}, Action: specs.ActErrno},
			{Names: []string{"connect"}, Action: specs.ActErrno, Args: []specs.LinuxSeccompArg{arg(2, specs.OpGreaterThan, 100, 0)}},
			{Names: []string{"kill"}, Action: specs.ActKillProcess, Args: []specs.LinuxSeccompArg{arg(1, specs.OpEqualTo, 9, 0)}},
			{Names: []string{"uname"}, Action: specs.ActErrno, ErrnoRet: &errno},
		},
	}
	out["every operator"] = &specs.LinuxSeccomp{
		DefaultAction: specs.ActKill, Architectures: []specs.Arch{specs.ArchX86},
		Syscalls: []specs.LinuxSyscall{
			{Names: []string{"read"}, Action: specs.ActAllow, Args: []specs.LinuxSeccompArg{arg(0, specs.OpEqualTo, big, 0)}},
			{Names: []string{"write"}, Action: specs.ActAllow, Args: []specs.LinuxSeccompArg{arg(1, specs.OpNotEqual, big, 0)}},
			{Names: []string{"close"}, Action: specs.ActAllow, Args: []specs.LinuxSeccompArg{arg(2, specs.OpLessThan, big, 0)}},
			{Names: []string{"fstat"}, Action: specs.ActAllow, Args: []specs.LinuxSeccompArg{arg(3, specs.OpLessEqual, big, 0)}},
			{Names: []string{"lseek"}, Action: specs.ActTrap, Args: []specs.LinuxSeccompArg{arg(4, specs.OpGreaterThan, big, 0)}},
			{Names: []string{"mmap"}, Action: specs.ActLog, Args: []specs.LinuxSeccompArg{arg(5, specs.OpGreaterEqual, big, 0)}},
			{Names: []string{"ioctl"}, Action: specs.ActTrace, Args: []specs.LinuxSeccompArg{arg(1, specs.OpMaskedEqual, 0xf0_0000_00f0, 0x10_0000_0020)}},
			{Names: []string{"openat"}, Action: specs.ActAllow, Args: []specs.LinuxSeccompArg{
				arg(0, specs.OpEqualTo, 1, 0), arg(1, specs.OpGreaterThan, 5, 0), arg(2, specs.OpMaskedEqual, 3, 1),
			}},
			{Names: []string{"dup"}, Action: specs.ActAllow, Args: []specs.LinuxSeccompArg{ // the same argument twice: or
				arg(0, specs.OpEqualTo, 1, 0), arg(0, specs.OpEqualTo, big, 0)}},
			{Names: []string{"pipe2"}, Action: specs.ActErrno, Args: []specs.LinuxSeccompArg{arg(0, specs.OpGreaterEqual, 5, 0)}},
			{Names: []string{"pipe2"}, Action: specs.ActAllow, Args: []specs.LinuxSeccompArg{arg(0, specs.OpGreaterEqual, 1, 0)}},
			{Names: []string{"getpid"}, Action: specs.ActLog, Args: []specs.LinuxSeccompArg{arg(0, specs.OpEqualTo, 1, 0)}},
			{Names: []string{"getpid"}, Action: specs.ActAllow}, // no condition wins over one
			{Names: []string{"nosuchcall", "exit_group"}, Action: specs.ActAllow},
		},
	}
	wide := &specs.LinuxSeccomp{DefaultAction: specs.ActErrno} // long enough for far jumps
	for i, c := range calls {
		if i%4 != 0 {
			continue
		}
		wide.Syscalls = append(wide.Syscalls, specs.LinuxSyscall{Names: []string{c.name}, Action: specs.ActAllow, Args: []specs.LinuxSeccompArg{arg(uint(i%6), specs.OpEqualTo, uint64(i), 0)}})
	}
	out["far"] = wide
	return out
}

// samples are values around everything that the rules for a number compare with.
func (w *words) samples(nr uint32) []uint64 {
	s := []uint64{0, 1, 2, 5, 9, 1 << 31, 0xffffffff, 1 << 32, 1<<32 | 1, 1<<63 | 1, ^uint64(0)}
	for _, l := range w.by[nr] {
		for _, a := range l.args {
			for _, v := range []uint64{a.Value, a.ValueTwo, a.ValueTwo | ^a.Value} {
				s = append(s, v, v+1, v-1, v|1<<32, v&0xffffffff)
			}
		}
		s = append(s, l.sub, l.sub|1<<32)
	}
	slices.Sort(s)
	return slices.Compact(s)
}

func (w *words) conditional(nr uint32) bool {
	return slices.ContainsFunc(w.by[nr], func(l line) bool { return len(l.args) > 0 || l.sub != 0 })
}

// inputs calls fn with every number of the table and more, and with arguments where they matter.
func (w *words) inputs(fn func(d data)) {
	base := w.a.base()
	var numbers []uint32
	for nr := base; nr < base+700; nr++ {
		numbers = append(numbers, nr)
	}
	for nr := uint32(armPrivate) - 2; nr < armPrivate+10; nr++ {
		numbers = append(numbers, base+nr)
	}
	numbers = append(numbers, base+100000, base+0x3fffffff)
	if w.a != x32 && w.a != x8664 {
		numbers = append(numbers, 0x7fffffff, 0xffffffff)
	}
	rng := rand.New(rand.NewPCG(1, 2))
	for _, nr := range numbers {
		d := data{nr: nr, arch: audit[w.a]}
		fn(d)
		if !w.conditional(nr) {
			continue
		}
		values := w.samples(nr)
		for i := range d.args {
			for _, v := range values {
				d.args = [6]uint64{}
				d.args[i] = v
				fn(d)
			}
		}
		for range 300 {
			for i := range d.args {
				d.args[i] = values[rng.IntN(len(values))]
			}
			fn(d)
		}
	}
}
