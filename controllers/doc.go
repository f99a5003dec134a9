// Package controllers turns MasterKeys into sealed key material and DataKeyRequests into Secrets that hold only ciphertext.
//
// Every controller has two functions. Reconcile writes the status once, even after an error, and then emits the events. The
// inner reconcile looks, decides and acts, and returns what is to be told: it never writes a status. What is decided from a
// Secret and a status is one pure function, decide.
//
// What is durable is the record, never the status alone: whatever a MasterKey or a DataKeyRequest says of itself is proved by
// the key service before it is used. A controller that dies after any single write finds, when it starts again, what it had
// made, and two that run at once meet at a Create that only one of them can win.
package controllers
