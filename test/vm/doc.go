// Package vm runs gantry on the oldest kernel that it supports, Debian's cloud kernel 6.1, under
// QEMU's software emulation: cgroup v2 and v1 as distributions mount them, and the fallbacks for
// what that kernel lacks; and the native runtime's suite, with cgroup v2 and AppArmor.
package vm
