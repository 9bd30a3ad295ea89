import asyncio
import threading

from moshijax.serve.waiting import Bell, Patience


def test_events_set_from_threads_are_all_heard_and_wake_the_loop_seldom() -> None:
    async def scenario():
        loop = asyncio.get_running_loop()
        wakes, call = [], loop.call_soon_threadsafe
        loop.call_soon_threadsafe = lambda *arguments: (wakes.append(1), call(*arguments))
        bell, events = Bell(loop), [asyncio.Event() for _ in range(400)]

        def ring(some):
            for event in some:
                bell.ring(event)

        ring(events[:100])
        assert len(wakes) == 1 and not events[0].is_set()
        threads = [threading.Thread(target=ring, args=(events[first : first + 100],)) for first in (100, 200, 300)]
        for thread in threads:
            thread.start()
        await asyncio.gather(*(event.wait() for event in events))
        for thread in threads:
            thread.join()
        events[0].clear()
        ring(events[:1])
        await events[0].wait()

    asyncio.run(asyncio.wait_for(scenario(), 60))


def test_patience_ends_once_unless_something_happened_in_time() -> None:
    async def scenario():
        given_up = asyncio.Event()
        patience = Patience(0.05, given_up.set)
        patience.begin()
        await given_up.wait()
        given_up.clear()
        patience.begin()
        patience.end()
        await asyncio.sleep(0.2)
        assert not given_up.is_set()
        patience.begin()
        begun = asyncio.get_running_loop().time()
        await asyncio.sleep(0.03)
        patience.begin()
        await given_up.wait()
        assert asyncio.get_running_loop().time() - begun >= 0.08 - 1e-3
        given_up.clear()
        patience.begin()
        patience.close()
        await asyncio.sleep(0.2)
        assert not given_up.is_set()

    asyncio.run(scenario())
