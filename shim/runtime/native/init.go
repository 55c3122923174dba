package native

import (
	"encoding/binary"
	"fmt"
	"runtime"
	"strconv"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The init of --init is a program of some hundred bytes, written in assembler, because it is in the
// container for as long as the container lives: it has one thread, touches one page of the stack, and
// nothing in its executable is the shim's. It waits for signals: SIGCHLD makes it reap, and end as
// process 2 does; every other goes to process 2.

// initCode is that program; it is copied, never called.
func initCode() //nolint:unused // named by initAddr, in assembler

// initAddr is the address of its first instruction.
func initAddr() unsafe.Pointer

// initSize is enough for initCode on every architecture; the padding behind it is never executed.
const initSize = 256

const (
	initBase   = 0x400000
	initHeader = 64 + 2*56
)

// initELF is an executable file around initCode (elf(5)).
func initELF() []byte {
	machine := uint16(62) // EM_X86_64
	if runtime.GOARCH == "arm64" {
		machine = 183 // EM_AARCH64
	}
	le := binary.LittleEndian
	b := []byte{0x7f, 'E', 'L', 'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0}
	b = le.AppendUint16(b, 2) // ET_EXEC
	b = le.AppendUint16(b, machine)
	b = le.AppendUint32(b, 1)
	b = le.AppendUint64(b, initBase+initHeader) // entry
	b = le.AppendUint64(b, 64)                  // program headers
	b = le.AppendUint64(b, 0)
	b = le.AppendUint32(b, 0)
	for _, v := range []uint16{64, 56, 2, 64, 0, 0} {
		b = le.AppendUint16(b, v)
	}
	b = le.AppendUint32(b, 1) // PT_LOAD
	b = le.AppendUint32(b, 5) // readable, executable
	for _, v := range []uint64{0, initBase, initBase, initHeader + initSize, initHeader + initSize, 0x10000} {
		b = le.AppendUint64(b, v)
	}
	b = le.AppendUint32(b, 0x6474e551) // PT_GNU_STACK
	b = le.AppendUint32(b, 6)          // readable, writable: not executable
	for range 6 {
		b = le.AppendUint64(b, 0)
	}
	return append(b, unsafe.Slice((*byte)(initAddr()), initSize)...)
}

// initFile is the program as a sealed file in memory, open for reading only: a file that anybody can
// write cannot be executed.
func initFile() (int, error) {
	fd, err := unix.MemfdCreate("gantry-init", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return -1, fmt.Errorf("make init: %w", err)
	}
	defer unix.Close(fd) //nolint:errcheck // another descriptor is kept
	if _, err = unix.Write(fd, initELF()); err == nil {
		err = unix.Fchmod(fd, 0o555)
	}
	if err == nil {
		_, err = unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, unix.F_SEAL_SEAL|unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_WRITE)
	}
	if err != nil {
		return -1, fmt.Errorf("make init: %w", err)
	}
	ro, err := unix.Open("/proc/self/fd/"+strconv.Itoa(fd), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("make init: %w", err)
	}
	defer unix.Close(ro) //nolint:errcheck // a higher number is kept
	fd, err = unix.FcntlInt(uintptr(ro), unix.F_DUPFD_CLOEXEC, low)
	if err != nil {
		return -1, fmt.Errorf("make init: %w", err)
	}
	return fd, nil
}

// initFiles are the descriptors that a process with a small init needs, from low on: the program, and a pipe's ends.
func initFiles(open *files) ([]int, error) {
	fd, err := initFile()
	if err != nil {
		return nil, err
	}
	kept := []int{open.add(fd)}
	var pipe [2]int
	if err := unix.Pipe2(pipe[:], unix.O_CLOEXEC); err != nil {
		return nil, fmt.Errorf("make init: %w", err)
	}
	for _, end := range pipe {
		fd, ferr := unix.FcntlInt(uintptr(end), unix.F_DUPFD_CLOEXEC, low)
		_ = unix.Close(end)
		if ferr != nil {
			err = fmt.Errorf("make init: %w", ferr)
			continue
		}
		kept = append(kept, open.add(fd))
	}
	return kept, err
}
