// Package bench measures gantry beside whichever of docker, podman, ctr, crun and runc are
// installed: interleaved in one run, on the same images, in one network namespace. It prints
// medians, 95th percentiles and ratios. "make bench" runs it; it judges nothing.
package bench
