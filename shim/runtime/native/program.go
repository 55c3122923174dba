package native

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/internal/insecure"
)

// A program is a list of system calls that the parent prepares with ordinary Go and that a cloned
// child runs (run). The child is a copy of the parent's memory with one thread and no Go runtime:
// it may do nothing but system calls. Arguments that are addresses point into memory that the
// program keeps.
type program struct {
	ops   []op
	steps []step // of each op
	now   step   // of the ops that are added
	keep  []any
	// controlFD is the child's end of the socket to the parent.
	controlFD int
	// lent is what only the child may have once it is there.
	lent files
	// forkedAt is the first step of the process that a child makes in its own place.
	forkedAt int
	// answers are what the parent does when the child says something on its way; it waits for those
	// whose bit, counted down from 0, is set in asks.
	answers map[int64]func(context.Context, child) error
	asks    uint64
	// prelude is what the thread that clones does before; it ends after.
	prelude func() error
}

// step is what an op is for, as an error would say it, and that error's class; nil: none.
type step struct {
	name  string
	class error
}

// stepError is a step that failed in the child.
type stepError struct {
	step
	errno syscall.Errno
}

func (e *stepError) Error() string { return e.name + ": " + e.errno.Error() }

func (e *stepError) Unwrap() []error {
	if e.class == nil {
		return []error{e.errno}
	}
	return []error{e.errno, e.class}
}

// op is one step.
type op struct {
	nr   uintptr
	a    [6]uintptr
	refs uint32 // bit i: argument i is the number of a register
	kind uint32
	save uintptr          // register for the result, plus one; 0: not kept
	fine [2]syscall.Errno // errors that are none …
	to   int              // … and where to go on then, if not with the next; 0: the next
}

const (
	kindCall  = iota
	kindGoto  // to op.to
	kindZero  // to op.to, if the register a[0] is zero
	kindEqual // the 32-bit word at a[0], masked by a[1], must be a[2], else it fails with a[3]
	kindReady // tell the parent that all went well so far, and go on when it says so
	kindExec  // a[0]: list of paths to try, ended by 0; a[1]: argv; a[2]: environment
	kindTell  // a[0] becomes the socket to the parent
	kindKeep  // a[1] is written to the address a[0]
)

// Registers. The first is the socket to the parent.
const (
	regControl = iota
	regScratch
	regRoot // the host's root, until pivot
	regNull // the host's /dev/null
	regProc // the container's procfs, newly mounted
	regFork // what clone answered
	regFree
	registers = 24
)

// record is what a child tells its parent.
type record struct {
	index int64 // of the op that failed; ready and forked are below 0
	errno int64
	more  int64 // of kindExec: which path; of forked: the new process's pid
}

const (
	ready  = -1
	forked = -2
)

const recordSize = int(unsafe.Sizeof(record{}))

func (p *program) say(format string, args ...any) {
	p.now = step{name: fmt.Sprintf(format, args...)}
	if clock != nil {
		p.add(unix.SYS_CLOCK_GETTIME, unix.CLOCK_MONOTONIC, clock(p.now.name))
	}
}

// clock is for measurements: where the child writes the time at which it comes to a step, in memory
// that it shares with its parent.
var clock func(step string) uintptr

const (
	createSteps = 320 // what making a container takes at the most, but for many mounts
	execSteps   = 96
)

// lists are those of programs that have run: a list that grows is written several times over, each
// process needs one, and a shim keeps what it has used.
var lists = sync.Pool{New: func() any { return new(written) }}

type written struct {
	ops   []op
	steps []step
}

// reserve makes room for n steps.
func (p *program) reserve(n int) {
	l := lists.Get().(*written) //nolint:forcetypeassert // nothing else is in there
	p.ops, p.steps = slices.Grow(l.ops[:0], n), slices.Grow(l.steps[:0], n)
}

// release gives the list back. The child, if there is one, has its own copy of it.
func (p *program) release() {
	clear(p.steps)
	lists.Put(&written{p.ops, p.steps})
	p.ops, p.steps, p.keep = nil, nil, nil
}

// add appends a step and answers it, for as long as the next is not added.
func (p *program) add(nr uintptr, args ...uintptr) *op {
	var o op
	o.nr = nr
	copy(o.a[:], args)
	p.ops = append(p.ops, o)
	p.steps = append(p.steps, p.now)
	return &p.ops[len(p.ops)-1]
}

func (p *program) addKind(kind uint32, args ...uintptr) *op {
	o := p.add(0, args...)
	o.kind = kind
	return o
}

// ref says that the arguments numbered are registers.
func (o *op) ref(args ...int) *op {
	for _, i := range args {
		o.refs |= 1 << i
	}
	return o
}

func (o *op) into(reg uintptr) *op { o.save = reg + 1; return o }

// ok names errors that are none.
func (o *op) ok(errs ...syscall.Errno) *op { copy(o.fine[:], errs); return o }

// here is the index of the next step, as a target for jumps from before: patch them when it is known.
func (p *program) here() int { return len(p.ops) }

func (p *program) str(s string) uintptr {
	b := append([]byte(s), 0)
	p.keep = append(p.keep, b)
	return uintptr(unsafe.Pointer(&b[0]))
}

func (p *program) bytes(b []byte) uintptr {
	if len(b) == 0 {
		b = []byte{0}
	}
	p.keep = append(p.keep, b)
	return uintptr(unsafe.Pointer(&b[0]))
}

// hold keeps v, a pointer, and answers its address.
func hold[T any](p *program, v *T) uintptr {
	p.keep = append(p.keep, v)
	return uintptr(unsafe.Pointer(v))
}

// strs is a list of C strings that ends with a null.
func (p *program) strs(list []string) uintptr {
	out := make([]uintptr, len(list)+1)
	for i, s := range list {
		out[i] = p.str(s)
	}
	p.keep = append(p.keep, out)
	return uintptr(unsafe.Pointer(&out[0]))
}

// at is AT_FDCWD as an argument.
const at = ^uintptr(99)

// inside opens path, which must be free of symbolic links, below the directory in register or
// descriptor dir, into register reg. It never leaves dir.
func (p *program) inside(dir uintptr, isReg bool, path string, flags uint64, reg uintptr) *op {
	if path == "" || path == "/" {
		path = "."
	}
	how := &unix.OpenHow{Flags: flags | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_SYMLINKS}
	if insecure.Without(insecure.Links) {
		how.Resolve = 0
	}
	o := p.add(unix.SYS_OPENAT2, dir, p.str(path), hold(p, how), unsafe.Sizeof(*how)).into(reg)
	if isReg {
		o.ref(0)
	}
	return o
}

const openTreeCloexec = unix.O_CLOEXEC

// cloneArgs is struct clone_args (clone(2)).
type cloneArgs struct {
	flags, pidfd, childTID, parentTID, exitSignal, stack, stackSize, tls, setTID, setTIDSize, cgroup uint64
}

// run executes a program. It runs in a process without a Go runtime: no allocation, no growth of the
// stack, no write barrier, no pointer but those that were made before.
//
//go:norace
//go:nocheckptr
//go:nosplit
func run(ops unsafe.Pointer, n int, regs unsafe.Pointer) { //nolint:gocognit // one loop: what it would call needs the same care
	var rec record
	for i := 0; i < n; i++ {
		o := (*op)(unsafe.Add(ops, uintptr(i)*unsafe.Sizeof(op{})))
		a := o.a
		if o.refs != 0 {
			for j := uintptr(0); j < 6; j++ {
				if o.refs>>j&1 != 0 {
					a[j] = *(*uintptr)(unsafe.Add(regs, a[j]*unsafe.Sizeof(uintptr(0))))
				}
			}
		}
		var r uintptr
		var e syscall.Errno
		switch o.kind {
		case kindCall:
			r, _, e = syscall.RawSyscall6(o.nr, a[0], a[1], a[2], a[3], a[4], a[5])
		case kindGoto:
			i = o.to - 1
			continue
		case kindZero:
			if a[0] == 0 {
				i = o.to - 1
			}
			continue
		case kindEqual:
			if *(*uint32)(unsafe.Add(unsafe.Pointer(nil), a[0]))&uint32(a[1]) != uint32(a[2]) {
				e = syscall.Errno(a[3])
			}
		case kindKeep:
			*(*uintptr)(unsafe.Add(unsafe.Pointer(nil), a[0])) = a[1]
			continue
		case kindTell:
			*(*uintptr)(regs) = a[0]
			continue
		case kindReady:
			rec.index = ready
			syscall.RawSyscall(unix.SYS_WRITE, *(*uintptr)(regs), uintptr(unsafe.Pointer(&rec)), uintptr(recordSize))
			if !heard(*(*uintptr)(regs), uintptr(unsafe.Pointer(&rec))) {
				syscall.RawSyscall(unix.SYS_EXIT_GROUP, 125, 0, 0)
			}
			continue
		case kindExec:
			rec.more, e = execute(a[0], a[1], a[2])
		}
		if e != 0 && (o.fine[0] == e || o.fine[1] == e) {
			if o.to != 0 {
				i = o.to - 1
			}
			continue
		}
		if e != 0 {
			rec.index, rec.errno = int64(i), int64(e)
			syscall.RawSyscall(unix.SYS_WRITE, *(*uintptr)(regs), uintptr(unsafe.Pointer(&rec)), uintptr(recordSize))
			// Stay until the parent has looked at what is mounted here.
			heard(*(*uintptr)(regs), uintptr(unsafe.Pointer(&rec)))
			syscall.RawSyscall(unix.SYS_EXIT_GROUP, 125, 0, 0)
		}
		if o.save != 0 {
			*(*uintptr)(unsafe.Add(regs, (o.save-1)*unsafe.Sizeof(uintptr(0)))) = r
		}
	}
	syscall.RawSyscall(unix.SYS_EXIT_GROUP, 125, 0, 0)
}

// heard waits for a word of the parent; false: it has gone.
//
//go:norace
//go:nocheckptr
//go:nosplit
func heard(control, buf uintptr) bool {
	for {
		n, _, e := syscall.RawSyscall(unix.SYS_READ, control, buf, uintptr(recordSize))
		if e != unix.EINTR {
			return e == 0 && n == 1
		}
	}
}

// execute tries paths in order, as execvp(3): what cannot be reached is passed over, "permission
// denied" is remembered.
//
//go:norace
//go:nocheckptr
//go:nosplit
func execute(paths, argv, env uintptr) (int64, syscall.Errno) {
	seen, which := syscall.Errno(0), int64(0)
	for i := int64(0); ; i++ {
		path := *(*uintptr)(unsafe.Add(unsafe.Pointer(nil), paths+uintptr(i)*unsafe.Sizeof(path0)))
		if path == 0 {
			return which, seen
		}
		_, _, e := syscall.RawSyscall(unix.SYS_EXECVE, path, argv, env)
		switch e {
		case unix.ENOENT, unix.ENOTDIR:
			if seen == 0 {
				seen, which = e, i
			}
		case unix.EACCES:
			if seen != unix.EACCES {
				seen, which = e, i
			}
		default:
			return i, e
		}
	}
}

var path0 uintptr
