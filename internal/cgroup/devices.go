package cgroup

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"runtime"
	"strconv"
	"unsafe"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// Devices says which devices may be used, in the order of the rules: the last that fits decides.
// It begins with none.
func (g *Group) Devices(rules []specs.LinuxDeviceCgroup) error {
	if len(rules) == 0 {
		return nil
	}
	var err error
	if dir := g.dir("devices"); dir != "" {
		err = devicesV1(dir, rules)
	} else if g.h.V2 != "" {
		err = devicesV2(g.h.V2+g.Path, rules)
	} else {
		err = fmt.Errorf("this host can limit devices neither by cgroup v1 nor by v2: %w", errdefs.ErrNotImplemented)
	}
	if err != nil {
		return fmt.Errorf("limit devices: %w", err)
	}
	return nil
}

// devicesV1 writes rules as the kernel's documentation has them (cgroup-v1/devices.rst).
func devicesV1(dir string, rules []specs.LinuxDeviceCgroup) error {
	for _, r := range rules {
		line, err := ruleV1(r)
		if err != nil {
			return err
		}
		file := "devices.deny"
		if r.Allow {
			file = "devices.allow"
		}
		if err := write(filepath.Join(dir, file), line); err != nil {
			return err
		}
	}
	return nil
}

func ruleV1(r specs.LinuxDeviceCgroup) (string, error) {
	kind := r.Type
	if kind == "" || kind == "a" {
		if r.Major != nil || r.Minor != nil {
			return "", fmt.Errorf("rule for every type with a number: %w", errdefs.ErrInvalidArgument)
		}
		return "a *:* rwm", nil
	}
	if kind != "c" && kind != "b" {
		return "", fmt.Errorf("device type %q: c, b and a are known: %w", kind, errdefs.ErrInvalidArgument)
	}
	part := func(n *int64) string {
		if n == nil || *n < 0 {
			return "*"
		}
		return strconv.FormatInt(*n, 10)
	}
	access := r.Access
	if access == "" {
		access = "rwm"
	}
	return kind + " " + part(r.Major) + ":" + part(r.Minor) + " " + access, nil
}

// insn is one eBPF instruction (bpf(2); include/uapi/linux/bpf.h).
type insn struct {
	op  uint8
	reg uint8 // destination in the low half, source in the high
	off int16
	imm int32
}

// The opcodes used below.
const (
	bpfLdxW  = 0x61 // dst = *(u32 *)(src + off)
	bpfMovK  = 0xb7
	bpfMovX  = 0xbf
	bpfAndK  = 0x57
	bpfRshK  = 0x77
	bpfJneK  = 0x55
	bpfJneX  = 0x5d
	bpfExit  = 0x95
	bpfJeqK  = 0x15
	accMknod = 1 // BPF_DEVCG_ACC_*
	accRead  = 2
	accWrite = 4
	devBlock = 1 // BPF_DEVCG_DEV_*
	devChar  = 2
)

// deviceProgram is the rules as a program of type BPF_PROG_TYPE_CGROUP_DEVICE. Its context is
// {u32 access_type (access << 16 | type), u32 major, u32 minor}; it returns 1 to allow. The last
// rule that fits decides, so the rules stand in reverse, and the first that fits returns.
func deviceProgram(rules []specs.LinuxDeviceCgroup) ([]insn, error) {
	p := []insn{
		{bpfLdxW, 0x12, 0, 0}, // r2 = access_type
		{bpfMovX, 0x23, 0, 0}, // r3 = r2
		{bpfAndK, 0x02, 0, 0xffff},
		{bpfRshK, 0x03, 0, 16}, // r2 type, r3 access
		{bpfLdxW, 0x14, 4, 0},  // r4 major
		{bpfLdxW, 0x15, 8, 0},  // r5 minor
	}
	for i := len(rules) - 1; i >= 0; i-- {
		one, err := ruleProgram(rules[i])
		if err != nil {
			return nil, err
		}
		p = append(p, one...)
		if len(one) == 2 { // it fits everything: what came after would never run, and the verifier refuses that
			return p, nil
		}
	}
	return append(p, insn{bpfMovK, 0x00, 0, 0}, insn{bpfExit, 0, 0, 0}), nil
}

// ruleProgram returns if a rule fits, and falls through if not.
func ruleProgram(r specs.LinuxDeviceCgroup) ([]insn, error) {
	if _, err := ruleV1(r); err != nil {
		return nil, err
	}
	var tests []insn // each jumps past the return where it does not fit; offsets come at the end
	switch r.Type {
	case "c":
		tests = append(tests, insn{bpfJneK, 0x02, 0, devChar})
	case "b":
		tests = append(tests, insn{bpfJneK, 0x02, 0, devBlock})
	}
	access := int32(0)
	for _, a := range r.Access {
		access |= map[rune]int32{'m': accMknod, 'r': accRead, 'w': accWrite}[a]
	}
	if access != 0 && access != accMknod|accRead|accWrite {
		if r.Allow { // fits if nothing is asked that the rule does not allow
			tests = append(tests, insn{bpfMovX, 0x31, 0, 0}, insn{bpfAndK, 0x01, 0, access}, insn{bpfJneX, 0x31, 0, 0})
		} else { // fits if anything is asked that the rule denies
			tests = append(tests, insn{bpfMovX, 0x31, 0, 0}, insn{bpfAndK, 0x01, 0, access}, insn{bpfJeqK, 0x01, 0, 0})
		}
	}
	if r.Major != nil && *r.Major >= 0 {
		tests = append(tests, insn{bpfJneK, 0x04, 0, int32(*r.Major)})
	}
	if r.Minor != nil && *r.Minor >= 0 {
		tests = append(tests, insn{bpfJneK, 0x05, 0, int32(*r.Minor)})
	}
	verdict := int32(0)
	if r.Allow {
		verdict = 1
	}
	p := append(tests, insn{bpfMovK, 0x00, 0, verdict}, insn{bpfExit, 0, 0, 0})
	for i := range tests {
		switch p[i].op {
		case bpfJneK, bpfJneX, bpfJeqK:
			p[i].off = int16(len(p) - i - 1)
		}
	}
	return p, nil
}

// devicesV2 loads the program and attaches it to the group.
func devicesV2(dir string, rules []specs.LinuxDeviceCgroup) error {
	p, err := deviceProgram(rules)
	if err != nil {
		return err
	}
	raw := make([]byte, 0, 8*len(p))
	for _, i := range p {
		raw = append(raw, i.op, i.reg)
		raw = binary.NativeEndian.AppendUint16(raw, uint16(i.off))
		raw = binary.NativeEndian.AppendUint32(raw, uint32(i.imm))
	}
	license := []byte("Apache-2.0\x00")
	load := struct {
		progType, insnCnt               uint32
		insns, license                  uint64
		logLevel, logSize               uint32
		logBuf                          uint64
		kernVersion, progFlags          uint32
		progName                        [16]byte
		progIfindex, expectedAttachType uint32
	}{
		progType: unix.BPF_PROG_TYPE_CGROUP_DEVICE, insnCnt: uint32(len(p)),
		insns: uint64(uintptr(unsafe.Pointer(&raw[0]))), license: uint64(uintptr(unsafe.Pointer(&license[0]))),
		expectedAttachType: unix.BPF_CGROUP_DEVICE,
	}
	copy(load.progName[:], "gantry_devices")
	prog, errno := loadProgram(unsafe.Pointer(&load), unsafe.Sizeof(load))
	if errno != 0 {
		return fmt.Errorf("load device program: %w", errno)
	}
	defer unix.Close(int(prog)) //nolint:errcheck // the group holds it
	fd, err := unix.Open(dir, unix.O_DIRECTORY|unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &fs.PathError{Op: "open", Path: dir, Err: err}
	}
	defer unix.Close(fd) //nolint:errcheck // it was only read
	attach := struct{ targetFd, attachBpfFd, attachType, attachFlags, replaceBpfFd uint32 }{
		uint32(fd), uint32(prog), unix.BPF_CGROUP_DEVICE, unix.BPF_F_ALLOW_MULTI, 0,
	}
	if _, _, errno = unix.Syscall(unix.SYS_BPF, unix.BPF_PROG_ATTACH, uintptr(unsafe.Pointer(&attach)), unsafe.Sizeof(attach)); errno != 0 {
		if errors.Is(errno, unix.EINVAL) {
			return fmt.Errorf("attach device program: %w (does the kernel have CONFIG_CGROUP_BPF?)", errno)
		}
		return fmt.Errorf("attach device program: %w", errno)
	}
	return nil
}

// loadProgram keeps signals away meanwhile: the verifier gives up when one comes (EAGAIN, bpf(2)), such as
// those by which Go's runtime has its threads take turns.
func loadProgram(attr unsafe.Pointer, size uintptr) (uintptr, unix.Errno) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var all, old unix.Sigset_t
	for i := range all.Val {
		all.Val[i] = ^all.Val[i]
	}
	if err := unix.PthreadSigmask(unix.SIG_SETMASK, &all, &old); err == nil {
		defer func() { _ = unix.PthreadSigmask(unix.SIG_SETMASK, &old, nil) }()
	}
	prog, _, errno := unix.Syscall(unix.SYS_BPF, unix.BPF_PROG_LOAD, uintptr(attr), size)
	return prog, errno
}
