// Package seccomp turns a seccomp profile of the OCI runtime specification into the program that the
// kernel runs (seccomp(2), classic BPF), without libseccomp and without cgo.
//
// The answers are those of libseccomp driven by runc, which users' profiles were written for; the
// program is another: the system calls of each architecture lie in a binary tree of ranges, so that
// the default profile needs two fifths of the instructions, and finds a call in eight comparisons.
//
//   - The native architecture is always covered, others that the machine can run if the profile names
//     them. A call of any other ends the process.
//   - Names of calls that an architecture does not have are passed over: profiles are written for all.
//   - Rules for one call are alternatives. One without conditions wins over all with some; those are
//     tried in the order of the profile (libseccomp leaves the order open).
//   - Calls newer than every one that the profile names answer ENOSYS where the default would be an
//     error, so that a program falls back to what it knows (runc, libcontainer/seccomp/patchbpf).
//   - On 32-bit x86 a rule that allows a socket or System V call only with certain arguments does not
//     open it in the multiplexed socketcall and ipc, where no filter can see them.
//
// The daemon compiles a profile once and hands the bytes to shims (File); a shim loads them. Importing
// the package costs nothing at start: tables are static data.
package seccomp

import (
	"encoding/binary"
	"fmt"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// maxInstructions is the kernel's limit (BPF_MAXINSNS, linux/bpf_common.h).
const maxInstructions = 4096

// instruction is the size of a struct sock_filter.
const instruction = 8

// DefaultFlags are the flags of seccomp(2) for a profile that names none: the kernel is not to add its
// mitigation of speculative stores to every process with a filter, which it stopped doing by itself in 5.16.
const DefaultFlags uint32 = unix.SECCOMP_FILTER_FLAG_SPEC_ALLOW

// Filter is a compiled profile, with what its profile asks of the loader.
type Filter struct {
	Program []unix.SockFilter
	Flags   uint32 // of seccomp(2), SECCOMP_FILTER_FLAG_…
	// Notify: some calls wait for the answer of a listener. The loader must ask for its descriptor
	// (SECCOMP_FILTER_FLAG_NEW_LISTENER) and give it to whoever listens at the profile's ListenerPath.
	Notify bool
}

// Compile is the program of a profile: an array of struct sock_filter, 8 bytes each, for
// SECCOMP_SET_MODE_FILTER. A mistake in the profile is InvalidArgument; a machine whose calls are not
// known here, NotImplemented.
func Compile(p *specs.LinuxSeccomp) ([]byte, error) {
	f, err := Translate(p)
	if err != nil {
		return nil, err
	}
	return encode(f.Program), nil
}

// Translate is Compile for whoever needs the profile's flags and listener as well.
func Translate(p *specs.LinuxSeccomp) (*Filter, error) {
	if p == nil {
		return nil, invalid("there is none")
	}
	f := &Filter{Flags: DefaultFlags}
	if len(p.Flags) > 0 {
		f.Flags = 0
	}
	for _, name := range p.Flags {
		bit, err := flag(name)
		if err != nil {
			return nil, err
		}
		f.Flags |= bit
	}
	abis, err := wanted(p.Architectures)
	if err != nil {
		return nil, err
	}
	rules, err := translate(p)
	if err != nil {
		return nil, err
	}
	f.Notify = rules.notify
	if f.Program, err = assemble(abis, rules); err != nil {
		return nil, err
	}
	return f, nil
}

// Parse is the instructions in the bytes that Compile gave. It checks the shape; that the program makes
// sense is checked by the kernel.
func Parse(filter []byte) ([]unix.SockFilter, error) {
	n := len(filter) / instruction
	if n == 0 || n > maxInstructions || len(filter) != n*instruction {
		return nil, fmt.Errorf("seccomp filter: %d bytes are not 1 to %d instructions of %d bytes: %w", len(filter), maxInstructions, instruction, errdefs.ErrInvalidArgument)
	}
	p := make([]unix.SockFilter, n)
	for i := range p {
		b := filter[i*instruction:]
		p[i] = unix.SockFilter{Code: binary.NativeEndian.Uint16(b), Jt: b[2], Jf: b[3], K: binary.NativeEndian.Uint32(b[4:])}
	}
	return p, nil
}

func encode(p []unix.SockFilter) []byte {
	b := make([]byte, 0, len(p)*instruction)
	for _, i := range p {
		b = binary.NativeEndian.AppendUint16(b, i.Code)
		b = append(b, i.Jt, i.Jf)
		b = binary.NativeEndian.AppendUint32(b, i.K)
	}
	return b
}

// flag is a flag of seccomp(2) by its name in the specification.
func flag(name specs.LinuxSeccompFlag) (uint32, error) {
	switch name {
	case specs.LinuxSeccompFlagLog:
		return unix.SECCOMP_FILTER_FLAG_LOG, nil
	case specs.LinuxSeccompFlagSpecAllow:
		return unix.SECCOMP_FILTER_FLAG_SPEC_ALLOW, nil
	case specs.LinuxSeccompFlagWaitKillableRecv:
		return unix.SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV, nil
	case "SECCOMP_FILTER_FLAG_TSYNC":
		return 0, nil // the filter is loaded while the process has one thread
	}
	return 0, invalid("flag %q is unknown", name)
}

func invalid(format string, args ...any) error {
	return fmt.Errorf("seccomp profile: "+format+": %w", append(args, errdefs.ErrInvalidArgument)...)
}
