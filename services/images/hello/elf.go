package hello

import "encoding/binary"

// Numbers of the ELF specification (elf(5)).
const (
	emX86_64  = 62
	emAArch64 = 183

	headerSize  = 64
	segmentSize = 56
	segments    = 2
	codeAt      = headerSize + segments*segmentSize
	base        = 0x400000
	page        = 0x10000 // the largest of the architectures'
)

var little = binary.LittleEndian

// link lays out a program: header, segments, code, text, all in one page that may be read and executed, and a stack that may not be executed.
func link(machine uint16, code func(text, size int) []byte, text string) []byte {
	n := len(code(0, 0)) // its length does not depend on what it refers to
	p := []byte{0x7f, 'E', 'L', 'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0}
	p = little.AppendUint16(p, 2) // ET_EXEC
	p = little.AppendUint16(p, machine)
	p = little.AppendUint32(p, 1)
	p = little.AppendUint64(p, base+codeAt) // entry
	p = little.AppendUint64(p, headerSize)  // segments follow
	p = little.AppendUint64(p, 0)           // no sections
	p = little.AppendUint32(p, 0)
	for _, v := range []uint16{headerSize, segmentSize, segments, 0, 0, 0} {
		p = little.AppendUint16(p, v)
	}
	size := uint64(codeAt + n + len(text))
	p = segment(p, 1, 4|1, base, size, page)  // PT_LOAD, readable and executable
	p = segment(p, 0x6474e551, 4|2, 0, 0, 16) // PT_GNU_STACK, readable and writable
	return append(append(p, code(n, len(text))...), text...)
}

func segment(p []byte, kind, flags uint32, addr, size, align uint64) []byte {
	p = little.AppendUint32(p, kind)
	p = little.AppendUint32(p, flags)
	for _, v := range []uint64{0, addr, addr, size, size, align} {
		p = little.AppendUint64(p, v)
	}
	return p
}

// amd64 is write(1, text, size); exit(0). text is how far behind the code's beginning the text is.
func amd64(text, size int) []byte {
	c := []byte{0xb8, 1, 0, 0, 0, 0xbf, 1, 0, 0, 0} // mov eax, 1 (write); mov edi, 1
	c = append(c, 0x48, 0x8d, 0x35)                 // lea rsi, [rip+...]
	c = little.AppendUint32(c, uint32(text-len(c)-4))
	c = append(c, 0xba) // mov edx, size
	c = little.AppendUint32(c, uint32(size))
	return append(c,
		0x0f, 0x05, // syscall
		0xb8, 60, 0, 0, 0, // mov eax, 60 (exit)
		0x31, 0xff, // xor edi, edi
		0x0f, 0x05) // syscall
}

// arm64 is the same in AArch64's words.
func arm64(text, size int) []byte {
	movz := func(reg, v uint32) uint32 { return 0xd2800000 | v<<5 | reg }
	const svc = 0xd4000001
	off := uint32(text - 4) // from the second instruction
	var c []byte
	for _, word := range []uint32{
		movz(0, 1), 0x10000000 | off&3<<29 | off>>2&0x7ffff<<5 | 1, movz(2, uint32(size)), movz(8, 64), svc, // x1 = text (adr); write
		movz(0, 0), movz(8, 93), svc, // exit
	} {
		c = little.AppendUint32(c, word)
	}
	return c
}
