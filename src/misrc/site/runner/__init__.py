"""From the accepted start to the signed receipt: who may start what, the processes around a program, what leaves."""
