// Package fault holds failpoints: named places where a test may kill, delay, stop or fail the
// program.
//
// A point stands between every claim and its act, and between every act and its record, since
// that is where a crash shows whether recovery works. In a release Point and Err are empty and
// the compiler removes them; built with -tags fault they obey GANTRY_FAULT, which is a list of
//
//	NAME=ACTION[:NTH]
//
// separated by semicolons. NAME is a point or a pattern of path.Match; a pattern counts the hits
// of all points that it matches together. NTH says at which hit to act (the first is 1); without
// it the action is taken at every hit. ACTION is one of
//
//	kill         SIGKILL to the process itself: nothing deferred runs, nothing is flushed
//	error        Err returns an error; Point cannot, and panics
//	unavailable  as error, of class errdefs.ErrUnavailable
//	delay:D      sleep for D, a duration of time.ParseDuration
//	pause        SIGSTOP to the process itself, until somebody sends SIGCONT
//
// GANTRY_FAULT_LOG names a file to which every hit appends its point's name, so that a crash test
// can first find out which points a journey passes, and then die at each of them.
package fault
