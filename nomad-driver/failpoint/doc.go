// Package failpoint lets a test have a program killed at a step of its work, as nothing could prevent.
//
// It owns the names of the steps' arming, and one signal. What is built without the tag "failpoints", as every release is, has none of it: no
// environment variable and no file makes such a program kill anything.
package failpoint
