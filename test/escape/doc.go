// Package escape attacks: for each hole of the last ten years in runc, crun, Docker, containerd and
// Podman there is a hostile image, bundle or program that did harm there, by its CVE number, and it
// must do none here.
//
// A test that only sees an attack fail proves little: it may be the attack that is wrong. So each is
// made again without what stops it, and must then succeed. Where that is a guard in the code, it is
// taken out (internal/insecure), which takes a build of its own: "go test -tags insecure". Where it is
// a word of config.json, a container without that word is attacked, in both builds. The real daemon has
// no such words yet, and some tricks (TestLayerClimbs, TestPasswdTraps) are refused for what they are:
// there it is only looked that nothing is achieved.
//
//	program_test.go   what is executed, open and inherited: 2019-5736, 2024-21626
//	visitor_test.go   what a container can do to a process that joins it, and to the shim: 2016-9962
//	mounts_test.go    where things are mounted and made: 2019-16884, 2019-18837, 2019-19921,
//	                  2021-30465, 2023-25809, 2023-27561, 2023-28642, 2024-45310, 2025-52565
//	kernel_test.go    what of the kernel is left open: 2022-0492, 2025-31133, 2025-52881; keys, cgroups
//	users_test.go     who a process is: 2016-3697, 2018-15664, 2022-24769, 2022-29162, 2022-36109
//	layers_test.go    images unpacked: 2018-15664, 2019-14271, 2021-32760
//	whole_test.go     the real daemon and shims, from inside and beside: 2020-15257, 2021-41091,
//	                  2021-41103, 2024-25621, and much of the above
//
// 2018-15664 and 2019-14271 were holes of "docker cp", which is not there yet. Whatever else reads or
// writes a container's files from outside is attacked in the same way: unpacking, /etc/passwd and
// /etc/group, mount points, terminals, logs.
package escape
